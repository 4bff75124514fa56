"""What every test may rely on: headless rendering, whatever is imported first."""

import os
import sys

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # mujoco reads it once, when it is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
