"""Off-screen rendering: one OpenGL context per process, shared by all its worlds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from gym_razor.suite.world import World

Image = npt.NDArray[np.uint8]

POLICY_CAMERAS = ("front", "wrist")
MAX_SIZE_PX = 640
_COARSE, _FINE = (1, 3), (1, 2)
_UNUSED_EFFECTS = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
)


def _gl_context(size: int) -> Any:
    """Make an off-screen OpenGL context.

    MuJoCo picks its context class when it is imported, and without `MUJOCO_GL` it picks one that
    needs a display. So the class is chosen here, independently of the order of imports.
    """
    backend = os.environ.get("MUJOCO_GL", "").strip().lower() or (
        "egl" if sys.platform == "linux" else ""
    )
    # Software OpenGL needs no threads: the worker processes are the parallelism.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if backend in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
    return mujoco.GLContext(size, size)


class Renderer:
    """Renders any `World` of this process into uint8 images.

    Args:
        world: Any world; all scenes share their meshes, so one context serves all of them.

    Raises:
        RuntimeError: No OpenGL context could be made; the text says what to install.
    """

    def __init__(self, world: World) -> None:
        model = world.model
        try:
            self._gl = _gl_context(MAX_SIZE_PX)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        except Exception as error:
            raise RuntimeError(
                "No OpenGL context for off-screen rendering "
                f"(MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: {error}). Install the Debian "
                "package libegl1 (and libgl1-mesa-dri for software rendering), or set "
                "MUJOCO_GL=osmesa with libosmesa6."
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=120)
        for flag in _UNUSED_EFFECTS:
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._perturb = mujoco.MjvPerturb()
        self._cameras: dict[str, Any] = {}
        for name in ("front", "wrist", "show"):
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = model.camera(name).id
            self._cameras[name] = camera
        self._size = (0, 0)
        self._groups: tuple[int, ...] = ()

    def render(self, world: World, cameras: Sequence[str], size: int, fine: bool = False) -> Image:
        """Render square views side by side.

        Args:
            world: The world to show.
            cameras: Camera names: `front`, `wrist`, `show`.
            size: Edge length in pixels, at most 640.
            fine: Use the fine robot meshes (for people) instead of the coarse ones (for policies).

        Returns:
            uint8 [len(cameras), size, size, 3].
        """
        self._gl.make_current()  # another renderer of this process may have run in between
        width = size * len(cameras)
        if self._size != (width, size):
            mujoco.mjr_resizeOffscreen(width, size, self._context)
            self._size = (width, size)
        groups = _FINE if fine else _COARSE
        if groups != self._groups:
            self._option.geomgroup[:] = 0
            self._option.geomgroup[list(groups)] = 1
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = fine
            self._groups = groups
        world.apply_colours()
        mujoco.mj_camlight(world.model, world.data)
        category = mujoco.mjtCatBit.mjCAT_ALL
        for index, name in enumerate(cameras):
            if index == 0:
                mujoco.mjv_updateScene(
                    world.model,
                    world.data,
                    self._option,
                    self._perturb,
                    self._cameras[name],
                    category,
                    self._scene,
                )
            else:
                mujoco.mjv_updateCamera(world.model, world.data, self._cameras[name], self._scene)
            mujoco.mjr_render(
                mujoco.MjrRect(index * size, 0, size, size), self._scene, self._context
            )
        strip = np.empty((size, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(strip, None, mujoco.MjrRect(0, 0, width, size), self._context)
        views: Image = strip[::-1].reshape(size, len(cameras), size, 3).transpose(1, 0, 2, 3)
        return views

    @property
    def name(self) -> str:
        """Return OpenGL's name of the renderer, for example `llvmpipe (LLVM 15.0.6, 256 bits)`."""
        from OpenGL import GL

        self._gl.make_current()
        return bytes(GL.glGetString(GL.GL_RENDERER)).decode(errors="replace")

    def close(self) -> None:
        """Free the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()
