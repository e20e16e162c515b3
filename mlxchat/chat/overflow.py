"""Which turns stand in the prompt when the conversation outgrows the context.

Knows turns and lengths; that nothing is dropped silently is the turn's business.
"""

from bisect import bisect_left
from collections.abc import Callable

from mlxchat.chat.conversation import Conversation, Node
from mlxchat.chat.template import Message

# Turns are dropped when less than an eighth of the context is left for the answer, until a quarter
# is free: each time the prompt's beginning changes, and all that comes after it is read again.
_ROOM_SHARE, _FREE_SHARE = 8, 4


def choose_messages(conversation: Conversation, *, is_asked: bool = False) -> list[Message]:
    """Returns the path as the template reads it, without the turns that were dropped.

    Args:
        conversation: The tree.
        is_asked: A question follows, so that nothing of the path need be left.
    """
    path = conversation.path()
    start = _find(path, conversation.dropped) + 1
    if start == len(path) and not is_asked:  # the person went back to there
        start = 0
    system = [Message("system", conversation.system)] if conversation.system else []
    return [*system, *(node.message for node in path[start:])]


def drop_oldest(
    conversation: Conversation,
    count: Callable[[], int],
    limit: int,
    max_tokens: int | None,
    *,
    is_asked: bool,
) -> list[Node]:
    """Drops as many of the oldest turns as it takes to leave room for an answer.

    Args:
        conversation: Its head is where the question goes.
        count: Counts the ids of the prompt that `choose_messages` gives at that moment.
        limit: Ids that prompt and answer may take together.
        max_tokens: Longest answer.
        is_asked: A question follows; else the last one on the path is answered.

    Returns:
        The questions whose turns were dropped now.
    """
    if is_asked and conversation.dropped == conversation.head:
        conversation.dropped = None
    wanted = min(max_tokens or limit, limit // _ROOM_SHARE)
    if count() + wanted <= limit:
        return []
    path = conversation.path()
    start = _find(path, conversation.dropped) + 1
    asked = [i for i, node in enumerate(path) if node.message.role == "user" and i >= start]
    # Each turn ends before the next question; the last one at the head.
    ends = [path[i - 1].id for i in asked[1:]] + ([path[-1].id] if is_asked and asked else [])

    def fits(number: int) -> bool:
        conversation.dropped = ends[number]
        return count() + max(wanted, limit // _FREE_SHARE) <= limit

    if not ends:
        return []
    number = min(bisect_left(range(len(ends)), True, key=fits), len(ends) - 1)
    conversation.dropped = ends[number]
    return [path[i] for i in asked[: number + 1]]


def _find(path: list[Node], node_id: int | None) -> int:
    """Returns the place of a node on a path, -1 where it is not on it."""
    return next((i for i, node in enumerate(path) if node.id == node_id), -1)


def format_dropped(conversation: Conversation, dropped: list[Node]) -> str:
    """Returns the line that says which turns were dropped."""
    numbers = {node.id: number for number, node in enumerate(conversation.questions(), start=1)}
    first, last = numbers[dropped[0].id], numbers[dropped[-1].id]
    which = f"turn {first} is" if first == last else f"turns {first} to {last} are"
    words = " ".join(dropped[0].message.content.split())
    words = words if len(words) <= 40 else f"{words[:39]}…"
    return (
        f"the context is full: {which} left out of the prompt from now on ({words!r} and so on);"
        " the tree keeps everything, /compact would have it summarised"
    )
