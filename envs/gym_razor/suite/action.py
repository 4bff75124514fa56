"""What an action means: a displacement of the gripper's tip, a turn, and a command to its fingers.

dx, dy, dz, dyaw and gripper, each in [-1, 1], ten times a second; see `World.step`.
"""

from __future__ import annotations

ACTION_DIM = 5
MAX_STEP_M = 0.05
"""Tip displacement of a translation action of 1, in metres per control step."""
MAX_TURN_RAD = 0.3
"""Yaw change of a yaw action of 1, in radians per control step."""
