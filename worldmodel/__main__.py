"""The console script: checks that all four packages are ours, then hands over to :mod:`training.cli`.

It lies here, and not in `training`, because a `training` of the user's would hide it there and its own check with it.
"""

import sys
from importlib import import_module

from worldmodel.shadow import ensure_ours


def main() -> int:
    """Run the command line.

    Raises:
        ImportError: if a package of the user's hides one of ours, with both paths.
    """
    ensure_ours("envs", "agents", "training")
    result: int = import_module("training.cli").main()
    return result


if __name__ == "__main__":
    sys.exit(main())
