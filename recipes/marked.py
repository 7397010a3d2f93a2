"""Text that a script writes between two marks of a page; the rest of the page is a person's."""


def between(page: str, begin: str, end: str, text: str) -> str:
    """`page` with `text` between its two marks. Raises ValueError if it lacks them."""
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"there is no {begin} with {end} after it.")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
