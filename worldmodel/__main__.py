"""The console script, and `python -m worldmodel`."""

import sys

from worldmodel.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
