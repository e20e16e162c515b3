"""Proof of a turn: its prompt read from scratch, and its ids compared with the template's text."""

from mlxchat.chat.reading import Reading
from mlxchat.chat.results import Verify
from mlxchat.engine.engine import Engine
from mlxchat.engine.worker import JobContext
from mlxchat.model.tokenizer import Tokenizer


def prove(engine: Engine, tokenizer: Tokenizer, reading: Reading, context: JobContext) -> Verify:
    """Compares what was reused with a from-scratch prefill.

    Args:
        engine: Its live sequence begins with the prompt, unless the reading says what does.
        tokenizer: Of the model.
        reading: The prompt as the turn read it.
        context: The job's.

    Raises:
        JobCancelledError: Stopped; nothing is proved.
    """
    check = (lambda: None) if context.cancelled else context.check  # an answer was stopped
    ids, held = reading.token_ids, reading.held
    found = engine.verify(ids, reading.last_logits, held=held, check=check)
    prompt = reading.prompt
    shown = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    wanted = tokenizer.decode(tokenizer.encode(prompt.text), skip_special_tokens=False)
    is_equal = found.ids_equal and shown == wanted
    return Verify(
        is_equal,
        found.max_abs_logit_diff,
        reading.token_ids,
        found.holds and is_equal,
        found.kv_logit_diff,
    )
