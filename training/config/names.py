"""The hint for a name that does not exist."""

import difflib


def nearest(name: str, known: list[str]) -> str:
    """Return a hint: the most similar known name, if there is a similar one, and the list of all known names."""
    folded = {other.strip().casefold(): other for other in known}
    close = difflib.get_close_matches(name.strip().casefold(), folded, n=1)
    hint = f"did you mean '{folded[close[0]]}'? " if close else ""
    return f"{hint}Available: {', '.join(map(repr, known)) or 'none'}"
