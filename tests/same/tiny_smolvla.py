"""Write a tiny SmolVLA, the same every time: `python tiny_smolvla.py FOLDER`.

It is made by LeRobot without the packages of this repository, so two revisions can start
from the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(next(TESTS.rglob("tiny_vla.py")).parent))

import tiny_vla  # noqa: E402

tiny_vla.save_tiny_smolvla(Path(sys.argv[1]))
assert not any(name.startswith(("robo_razor", "lerobot_policy_razor")) for name in sys.modules)
