"""Tables in Markdown that are printed row by row, as figures come."""


def print_header(*columns: str) -> None:
    """Prints the names of columns, and the line under them."""
    print_row(*columns)
    print("|" + "---|" * len(columns), flush=True)


def print_row(*cells: object) -> None:
    """Prints a row."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)
