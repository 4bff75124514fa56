"""What goes wrong inside an environment, as an error for the user."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from robo_razor.core.errors import EnvError, RoboRazorError, did_you_mean, shown

GL_NAMES = ("egl", "osmesa", "glfw")
"""What `MUJOCO_GL` can be on Linux."""
GL_WORDS = {*GL_NAMES, "", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1"} | {
    *("disable", "disabled", "off", "false", "0"),
}
"""All that MuJoCo takes."""
GL_SIGNS = re.compile(r"glGetError|MUJOCO_GL|GLContext|\bEGL\b|\begl[A-Z]|OSMesa|GLFWError")


@contextlib.contextmanager
def worker_errors(what: str | Callable[[], str] = "The environment failed") -> Iterator[None]:
    """Turn whatever an environment raises into an error for the user.

    Environments call it `WorkerError` if a worker process is at fault (dead, hung, or an exception
    inside), `EnvironmentFault` if it is the environment; their text says which episode it was. The
    tracebacks are left to `--debug`.

    Args:
        what: Begins the sentence for any other exception; a function says so only then.
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
            text = f"{what if isinstance(what, str) else what()}: {kind}: {text}"
        raise EnvError(text + gl_trouble(text), remedy=remedy) from error


def check_gl_setting() -> None:
    """Check that `MUJOCO_GL` names a way to render, for MuJoCo itself stops at any other word.

    Raises:
        EnvError: If not.
    """
    given = os.environ.get("MUJOCO_GL", "")
    if given.strip().lower() not in GL_WORDS:
        raise EnvError(
            f"No OpenGL context can be made: MUJOCO_GL is {shown(given)}."
            f"{did_you_mean(given, GL_NAMES)}",
            allowed=", ".join(GL_NAMES),
            remedy="On a machine without a display take egl (Debian packages libegl1 and "
            "libgl1-mesa-dri), or osmesa (libosmesa6).",
        )


def gl_trouble(text: str) -> str:
    """Return what to say where an exception with this text comes from OpenGL, else nothing."""
    if "No OpenGL context" in text or not GL_SIGNS.search(text):
        return ""
    return (
        f". No OpenGL context could be made (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}): "
        "install the Debian package libegl1 (and libgl1-mesa-dri for software rendering) for "
        "MUJOCO_GL=egl, or libosmesa6 for MUJOCO_GL=osmesa"
    )
