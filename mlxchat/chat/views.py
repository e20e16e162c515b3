"""What a prompt is made of: its parts with their lengths, its ids with their texts.

Pure functions of a conversation and its renderer; nothing here feeds a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlxchat.chat.conversation import Conversation
from mlxchat.chat.prompt import PromptRenderer
from mlxchat.chat.template import Message
from mlxchat.engine.token_ids import count_common
from mlxchat.errors import TemplateError


@dataclass(frozen=True, slots=True)
class ContextPart:
    """The system prompt or one turn in the context.

    Attributes:
        turn: Its number, counted from 1; None is the system prompt.
        text: Its question, or the system prompt.
        num_tokens: With the marks that the template puts around it.
    """

    turn: int | None
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ContextView:
    """What fills the context.

    Attributes:
        parts: In the order of the prompt.
        limit: Tokens that the context holds.
        num_left_out: Oldest turns that are no part of the prompt any more.
    """

    parts: tuple[ContextPart, ...]
    limit: int
    num_left_out: int = 0


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One id and the text that it stands for."""

    token_id: int
    text: str
    is_special: bool


def view_context(
    renderer: PromptRenderer, conversation: Conversation, messages: Sequence[Message], limit: int
) -> ContextView:
    """Returns what fills the context.

    Args:
        renderer: Of the conversation.
        conversation: Where the person is.
        messages: What of it stands in the prompt.
        limit: Tokens that the context holds.
    """
    num_shown = sum(message.role == "user" for message in messages)
    num_left_out = len(conversation.questions()) - num_shown
    parts = measure_parts(renderer, messages, num_left_out + 1)
    return ContextView(parts, limit, num_left_out)


def measure_parts(
    renderer: PromptRenderer, messages: Sequence[Message], first_turn: int
) -> tuple[ContextPart, ...]:
    """Measures what of a prompt belongs to which turn.

    Args:
        renderer: Of the conversation.
        messages: What stands in the prompt.
        first_turn: Number of the first turn in it.
    """
    if not messages:
        return ()
    whole = renderer.render_ids(messages, add_generation_prompt=False)
    starts = [i for i, message in enumerate(messages) if message.role == "user"]
    parts, done = [], 0
    if messages[0].role == "system":
        done = whole.message_ends[0] if len(messages) > 1 else len(whole.token_ids)
        parts.append(ContextPart(None, messages[0].content, done))
    for number, start in enumerate(starts, start=first_turn):
        is_last = start == starts[-1]
        next_start = len(messages) if is_last else starts[number - first_turn + 1]
        end = len(whole.token_ids)
        if not is_last:
            end = max(_end_of(renderer, messages[:next_start], whole.token_ids), done)
        parts.append(ContextPart(number, messages[start].content, end - done))
        done = end
    return tuple(parts)


def _end_of(renderer: PromptRenderer, messages: Sequence[Message], whole: tuple[int, ...]) -> int:
    """Returns how many ids of a prompt its first messages account for."""
    try:
        prefix = renderer.render_ids(messages, add_generation_prompt=False)
    except TemplateError:
        return 0
    return count_common(prefix.token_ids, whole)


def list_pieces(
    renderer: PromptRenderer, messages: Sequence[Message], text: str | None
) -> list[TokenPiece]:
    """Returns the ids of a text, or of the last message with the marks around it.

    Args:
        renderer: Of the conversation.
        messages: The conversation.
        text: None is the last message.
    """
    tokenizer = renderer.tokenizer
    if text is not None:
        token_ids = tuple(tokenizer.encode(text))
    else:
        whole = renderer.render_ids(messages, add_generation_prompt=False).token_ids
        start = _end_of(renderer, messages[:-1], whole) if len(messages) > 1 else 0
        token_ids = whole[start:]
    special = tokenizer.special_ids
    return [TokenPiece(i, tokenizer.token_text(i), i in special) for i in token_ids]
