"""Faults inside an environment, as errors for the user."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from robo_razor.core.errors import EnvError, RoboRazorError, did_you_mean, shown

GL_NAMES = ("egl", "osmesa", "glfw")
"""Values of `MUJOCO_GL` on Linux."""
GL_VALUES = {*GL_NAMES, "", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1"} | {
    *("disable", "disabled", "off", "false", "0"),
}
"""All values that MuJoCo accepts."""
GL_SIGNS = re.compile(r"glGetError|MUJOCO_GL|GLContext|\bEGL\b|\begl[A-Z]|OSMesa|GLFWError")


@contextlib.contextmanager
def worker_errors(context: str | Callable[[], str] = "The environment failed") -> Iterator[None]:
    """Turn any exception of an environment into an error for the user.

    Environments raise `WorkerError` for a faulty worker process (dead, hung, or an exception
    inside) and `EnvironmentFault` for a faulty environment; their text names the episode. Only
    `--debug` shows the tracebacks.

    Args:
        context: Beginning of the message for all other exceptions, or a function that returns it.
    """
    try:
        yield
    except RoboRazorError:
        raise
    except (Exception, SystemExit) as error:
        kind, text = type(error).__name__, str(error)
        remedy = None
        if kind == "WorkerError":
            text = re.sub(r"\nTraceback.*\n(?=\.)", "", text, flags=re.DOTALL)
            if "raised EnvironmentFault: " not in text:
                remedy = "`robo-razor doctor` checks OpenGL and memory."
        elif kind != "EnvironmentFault":
            text = f"{context if isinstance(context, str) else context()}: {kind}: {text}"
        raise EnvError(text + gl_advice(text), remedy=remedy) from error


def check_gl_setting() -> None:
    """Check that `MUJOCO_GL` names a way to render; MuJoCo fails with any other value.

    Raises:
        EnvError: It does not.
    """
    backend = os.environ.get("MUJOCO_GL", "")
    if backend.strip().lower() not in GL_VALUES:
        raise EnvError(
            f"No OpenGL context can be made: MUJOCO_GL is {shown(backend)}."
            f"{did_you_mean(backend, GL_NAMES)}",
            allowed=", ".join(GL_NAMES),
            remedy="On a machine without a display set egl (Debian packages libegl1 and "
            "libgl1-mesa-dri), or osmesa (libosmesa6).",
        )


def gl_advice(text: str) -> str:
    """Return advice to append if an exception with this text comes from OpenGL, else ""."""
    if "No OpenGL context" in text or not GL_SIGNS.search(text):
        return ""
    return (
        f". No OpenGL context could be made (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}): "
        "install the Debian package libegl1 (and libgl1-mesa-dri for software rendering) for "
        "MUJOCO_GL=egl, or libosmesa6 for MUJOCO_GL=osmesa"
    )
