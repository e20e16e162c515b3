"""What stands in a message before the person's words: attached texts, fenced, with their names.

`cli/attachments.py` puts them there; here they are told apart again.
"""

import re

_BLOCK = re.compile(r"(?P<name>[^\n]+):\n(?P<fence>`{3,})[^`\n]*\n.*?^(?P=fence)\n\n", re.M | re.S)
_MAX_TITLE_CHARS = 200


def split_attached(message: str) -> tuple[str, str, list[str]]:
    """Returns what is attached to a message, what the person wrote, and the names of the former.

    A message that begins with fences under a name is taken for one.
    """
    at, names = 0, []
    while match := _BLOCK.match(message, at):
        at = match.end()
        names.append(match["name"])
    return message[:at], message[at:], names


def make_title(question: str) -> str:
    """Returns the title of a conversation from its first question: the person's words.

    Where there are none, the names of what is attached stand for them.
    """
    _, own, names = split_attached(question)
    return (own if own.strip() else ", ".join(names))[:_MAX_TITLE_CHARS]
