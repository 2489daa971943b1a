"""Text that nodes choose, made fit for where it goes: a line that a person reads, a column of any database."""


def one_line(text: str, most: int) -> str:
    """Return `text` as one printable line of at most `most` characters: no NUL, no escapes for terminals."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])
