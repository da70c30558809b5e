"""The error message for a name that a suite does not have."""

import difflib
from collections.abc import Collection


def unknown(suite: str, what: str, name: str, known: Collection[str]) -> str:
    """Return the message for an unknown name. It lists the most similar names, or all names."""
    near = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
    return f"{suite} has no {what} '{name}': {hint}"
