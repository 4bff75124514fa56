"""What every test may rely on: headless rendering and its own core, whatever is imported first."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "toys"))  # here and in processes that tests start

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # mujoco reads it once, when it is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other workers need the cores
