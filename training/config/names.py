"""What to say about a name that does not exist."""

import difflib


def nearest(name: str, known: list[str]) -> str:
    """The nearest of the names that exist, if any is near, and all of them."""
    folded = {other.strip().casefold(): other for other in known}
    close = difflib.get_close_matches(name.strip().casefold(), folded, n=1)
    hint = f"did you mean '{folded[close[0]]}'? " if close else ""
    return f"{hint}There is {', '.join(map(repr, known)) or 'nothing'}"
