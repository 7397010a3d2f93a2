"""Where commands show what they found."""

from rich.console import Console


def plain_console() -> Console:
    """A console that shows names, paths and texts as they are, whatever brackets or colons stand in them."""
    return Console(markup=False, emoji=False)
