"""The tasks that the generic checks run on are the suite's and the one of the documentation."""

import sys
from pathlib import Path

# Also for worker processes, which find the module of the task here.
sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "extend"))
