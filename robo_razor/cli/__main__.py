"""`python -m robo_razor.cli` is `robo-razor`."""

import sys

from robo_razor.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
