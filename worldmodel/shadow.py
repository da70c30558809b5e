"""Guard against another package of the same name: `envs`, `agents` and `training` are names that a user may have."""

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
"""The directory that holds the four packages, side by side."""


def ensure_ours(*packages: str) -> None:
    """Check that importing each of these top-level packages gives ours.

    Raises:
        ImportError: if one resolves to something else, with both paths and the remedy.
    """
    for package in packages:
        found, ours = _location(package), HOME / package
        if found != ours:
            raise ImportError(
                f"'{package}' is {found or 'not found'}, which hides the package of this toolkit at {ours}. "
                f"Rename yours, or take its folder ({found.parent if found else HOME}) off the front of sys.path "
                "(the working directory, the script's directory, PYTHONPATH)."
            )


def _location(package: str) -> Path | None:
    """The directory of a package, or the file of a module, that importing `package` gives; without importing it."""
    spec = find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None
