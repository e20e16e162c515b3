"""Counts as people read them, in messages of every part of the program."""


def format_count(number: int) -> str:
    """Returns a count with its thousands set apart: `2 310`."""
    return f"{number:,}".replace(",", " ")
