"""The conversation as ids with its last answer marked, for looking inside while it goes on.

Only ids leave here: whoever looks feeds them to caches of their own, so that what the engine holds
stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mlxchat.chat.conversation import Conversation
from mlxchat.chat.overflow import choose_messages
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.token_ids import count_common
from mlxchat.errors import UsageError
from mlxchat.lens.edits import Both, Checked
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Taps
from mlxchat.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LiveText:
    """What a conversation holds.

    Attributes:
        name: The model as a person knows it.
        model: Answers; use it on the worker.
        tokenizer: Its tokenizer.
        token_ids: The prompt and the last answer, as the model read and wrote them.
        start: Where the answer begins; it was written from `start - 1` on.
        end: Where it ends, the end-of-turn token left out.
        taps: What steers the model, and ends a long pass when the person stops it.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    token_ids: tuple[int, ...]
    start: int
    end: int
    taps: Taps

    def texts(self) -> list[str]:
        """Returns each token's own text."""
        return [self.tokenizer.token_text(i) for i in self.token_ids]


def read_live(
    runner: TurnRunner, conversation: Conversation, check: Callable[[], None]
) -> LiveText:
    """Returns the conversation up to its last answer.

    Args:
        runner: Holds the model.
        conversation: Where the person is.
        check: Raises when the look is stopped.

    Raises:
        UsageError: There is no answer yet.
    """
    messages = choose_messages(conversation)
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise UsageError("there is no answer yet; send a message first")
    prompt = runner.renderer.render_ids(messages[:-1]).token_ids
    whole = runner.renderer.render_ids(messages, add_generation_prompt=False).token_ids
    start = count_common(prompt, whole)
    ends = (n for n in range(start, len(whole)) if whole[n] in runner.tokenizer.eos_ids)
    end = next(ends, len(whole))
    if start >= end:
        raise UsageError("the last answer has no tokens; send another message")
    return LiveText(
        runner.name,
        runner.loaded.model,
        runner.tokenizer,
        whole[:end],
        start,
        end,
        Both(runner.engine.taps, Checked(check)),
    )
