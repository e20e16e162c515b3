"""`mlxchat inspect tokens`: how a text is cut into tokens, merge by merge."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, look_options, show
from mlxchat.cli.options import resolve_model
from mlxchat.errors import TemplateError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxchat.chat.prompt import PromptRenderer
    from mlxchat.chat.template import Message
    from mlxchat.model.bpe import Merging


@dataclass(frozen=True, slots=True)
class Cut:
    """A text and its tokens.

    Attributes:
        model: Its name.
        text: What was encoded: the rendered message with `--chat`.
        token_ids: The ids.
        texts: Each token's text.
        pieces: Each token's bytes.
        special: Which tokens are special.
        borders: How many ids each message of the template ends with; empty for plain text.
        merging: How they came about.
    """

    model: str
    text: str
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    pieces: tuple[bytes, ...]
    special: tuple[bool, ...]
    borders: tuple[int, ...]
    merging: "Merging"


@click.command()
@click.argument("text")
@click.option("-s", "--system", metavar="TEXT", help="With --chat: a system prompt before it.")
@look_options(chat=True, adapter=False)
def tokens(text: str, system: str | None, is_chat: bool, model: str | None, **out: Any) -> None:
    """Show the tokens of a text: pieces, ids, bytes, and the merges that made them.

    With --chat it shows the whole prompt that the model's template makes of the message.
    """
    from mlxchat.model.hub import resolve_model as find_folder
    from mlxchat.model.tokenizer import Tokenizer

    folder = find_folder(resolve_model(model, load_settings()))
    tokenizer = Tokenizer.load(folder.path)
    cut = cut_text(tokenizer, text, folder.name, system=system, is_chat=is_chat)
    from mlxchat.cli.inspect import render_tokens

    show(
        to_json(cut),
        lambda console: render_tokens.make_view(cut),
        lambda: render_tokens.make_page(cut),
        **out,
    )


def cut_text(
    tokenizer: Any, text: str, model: str, *, system: str | None = None, is_chat: bool = False
) -> Cut:
    """Cuts a text, or the prompt that the template makes of it."""
    from mlxchat.chat.prompt import PromptRenderer
    from mlxchat.chat.template import ChatTemplate, Message
    from mlxchat.model.bpe import replay_merges

    borders: tuple[int, ...] = ()
    if is_chat:
        messages = [Message("system", system)] if system else []
        renderer = PromptRenderer(ChatTemplate.for_tokenizer(tokenizer), tokenizer)
        messages.append(Message("user", text))
        prompt = renderer.render_ids(messages)
        text, token_ids = prompt.text, list(prompt.token_ids)
        borders = _find_borders(renderer, messages, prompt.token_ids)
    else:
        token_ids = tokenizer.encode(text)
    return Cut(
        model,
        text,
        tuple(token_ids),
        tuple(tokenizer.token_text(i) for i in token_ids),
        tuple(tokenizer.token_bytes(i) for i in token_ids),
        tuple(i in tokenizer.special_ids for i in token_ids),
        borders,
        replay_merges(tokenizer, text),
    )


def _find_borders(
    renderer: "PromptRenderer", messages: "list[Message]", token_ids: "Sequence[int]"
) -> tuple[int, ...]:
    """Returns where each message ends: what is the same without those after it."""
    from mlxchat.engine.token_ids import count_common

    ends = []
    for count in range(1, len(messages) + 1):
        try:
            alone = renderer.render_ids(messages[:count], add_generation_prompt=False)
        except TemplateError:  # some templates want a question behind the system prompt
            continue
        ends.append(count_common(alone.token_ids, token_ids))
    return tuple(ends)


def to_json(cut: Cut) -> Json:
    """Returns what `--json` prints; bytes are hexadecimal, merges in the order of their making."""
    facts: Json = {
        "tokens": [
            {"id": i, "text": text, "bytes": piece.hex()}
            for i, text, piece in zip(cut.token_ids, cut.texts, cut.pieces, strict=True)
        ],
        "merges": [
            {"word": m.word, "position": m.position, "left": m.left, "right": m.right}
            for m in cut.merging.merges
        ],
    }
    if cut.borders:
        facts |= {"text": cut.text, "message_ends": list(cut.borders)}
    return facts
