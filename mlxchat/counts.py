"""Counts as people read them, in messages of every part of the program."""


def format_count(number: int) -> str:
    """Returns a count with its thousands set apart: `2 310`."""
    return f"{number:,}".replace(",", " ")


def format_ttft(seconds: float) -> str:
    """Returns the time to a first token: `0.08 s`, or `0.002 s` where nothing was left to read."""
    return f"{seconds:.3f} s" if seconds < 0.01 else f"{seconds:.2f} s"
