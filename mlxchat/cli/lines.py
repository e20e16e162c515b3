'''When Enter sends and when it adds a line: a trailing backslash, and blocks in triple quotes.

A block begins where the message begins with `"""` and ends with a line that ends with `"""`. Pure
rules; the keys are in `keys`.
'''

from typing import Literal

QUOTES = '"""'
BlockState = Literal["none", "open", "closed"]


def block_state(text: str) -> BlockState:
    """Tells whether a message is a block in triple quotes, and whether it has its end.

    Quotes that close on the first line with text after them make no block.
    """
    text = text.strip()
    if not text.startswith(QUOTES):
        return "none"
    first, _, rest = text.partition("\n")
    first = first.rstrip()
    if QUOTES in first[len(QUOTES) :]:
        return "closed" if first.endswith(QUOTES) and not rest else "none"
    return "closed" if rest.endswith(QUOTES) else "open"


def read_block(text: str) -> str | None:
    """Returns what stands in a closed block, without the line ends next to its quotes.

    Returns:
        None where the message is no closed block.
    """
    if block_state(text) != "closed":
        return None
    inner = text.strip()[len(QUOTES) : -len(QUOTES)]
    return inner.removeprefix("\n").removesuffix("\n")


def continue_line(text: str) -> str | None:
    r"""Returns the message with the line that Enter adds to it, or None where Enter sends it.

    An odd number of backslashes at the end adds a line in the place of the last one. An even
    number is text, as in LaTeX's `\\`.
    """
    state = block_state(text)
    if state == "open":
        return f"{text}\n"
    backslashes = len(text) - len(text.rstrip("\\"))
    if state == "none" and backslashes % 2:
        return f"{text[:-1]}\n"
    return None
