"""An answer that was cut off goes on: which one may, and with which ids.

The continuation stands in the tree beside the answer that it goes on with, and holds the whole
text: nothing that was said is changed, and `/goto` finds the shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.conversation import Conversation, Node
    from mlxchat.chat.prompt import PromptRenderer, RenderedPrompt
    from mlxchat.chat.template import Message

CUT_OFF = ("token_limit", "user_cancelled", "stop_string", "context_full")


@dataclass(frozen=True, slots=True)
class Begun:
    """The beginning of an answer that is already there.

    Attributes:
        token_ids: What the model generated of it, markers included.
        reasoning: The thinking that was shown.
        answer: The answer that was shown.
    """

    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    answer: str = ""

    def is_of(self, message: Message) -> bool:
        """Whether thinking and answer are apart where they are in the message."""
        shown, kept = (self.reasoning, self.answer), (message.reasoning or "", message.content)
        return [text.strip() for text in shown] == [text.strip() for text in kept]


def find_cut_off(conversation: Conversation) -> Node:
    """Returns the answer at the head, where it was cut off.

    Raises:
        UsageError: There is none, or it ended by itself.
    """
    node = None if conversation.head is None else conversation.nodes[conversation.head]
    if node is None:
        raise UsageError("nothing was said yet; say something first")
    if node.message.role != "assistant":
        raise UsageError("the last message has no answer yet; /retry answers it")
    if node.origin is None or node.origin.stop_reason not in CUT_OFF:
        raise UsageError(
            "the last answer was not cut off, it ended by itself; ask for more, or /retry it"
        )
    return node


def begin_again(node: Node, renderer: PromptRenderer, prompt: RenderedPrompt) -> Begun:
    """Returns an answer as far as it had come.

    Args:
        node: The answer; without its ids (another model's, or never stored) its text counts.
        renderer: Of the conversation.
        prompt: The conversation up to the question.
    """
    message, origin = node.message, node.origin
    token_ids = begun_ids(node, renderer, prompt)
    splitter = renderer.splitter(prompt)
    for token_id in token_ids:
        splitter.push(token_id)
    _, split = splitter.finish()
    answer = split.text
    if origin is not None and origin.stop_reason == "stop_string":  # its end was not shown
        at = answer.find(message.content)
        answer = answer[: max(at, 0) + len(message.content)]
    return Begun(token_ids, split.reasoning or "", answer)


def begun_ids(node: Node, renderer: PromptRenderer, prompt: RenderedPrompt) -> tuple[int, ...]:
    """Returns the ids of an answer as far as it had come; arguments are those of `begin_again`."""
    if node.origin is not None and node.origin.token_ids:
        return node.origin.token_ids
    text = _as_generated(node.message, renderer, prompt)
    return tuple(renderer.tokenizer.encode(text, is_continuation=True))


def _as_generated(message: Message, renderer: PromptRenderer, prompt: RenderedPrompt) -> str:
    """Returns thinking and answer with the markers that a model puts between them."""
    markers = renderer.markers
    opened = renderer.opened_by(prompt)
    if message.inline is not None:
        return message.inline.removeprefix(opened or "")
    if message.reasoning is None:
        return message.content
    opener = (
        markers.after_opener.removeprefix(opened[len(markers.opener) :])
        if opened is not None
        else markers.opener + markers.after_opener
    )
    if not message.content:
        return opener + message.reasoning
    closer = markers.before_closer + markers.closers[0] + markers.after_closer
    return opener + message.reasoning + closer + message.content
