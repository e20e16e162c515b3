"""`mlxchat inspect attention`: which tokens look at which, in every layer and head."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import EncoderSubject, Json, Subject, look, look_options, show
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.lens.attention import AttentionView


@click.command()
@click.argument("text")
@click.option("--word", metavar="WORD", help="Also show who looks at WORD.")
@click.option("--layer", type=int, metavar="N", help="Draw the map of this layer.")
@click.option("--head", type=int, metavar="N", help="Draw the map of this head.")
@look_options(chat=True)
def attention(
    text: str,
    word: str | None,
    layer: int | None,
    head: int | None,
    is_chat: bool,
    model: str | None,
    adapter: str | None,
    **out: Any,
) -> None:
    """Show which tokens look at which: maps, sinks, the strongest pairs.

    Without --layer and --head the map is the mean over all heads. Works on encoders of the BERT
    family too, whose tokens look both ways.
    """

    def work(subject: Subject) -> "tuple[AttentionView, list[str], tuple[int, ...], str]":
        from mlxchat.cli.words import find_word
        from mlxchat.lens.attention import read_attention

        token_ids = subject.encode(text, is_chat=is_chat)
        keys = () if word is None else find_word(subject.tokenizer, token_ids, word)
        view = read_attention(subject.model, token_ids)
        _check(view, layer, head)
        return view, subject.texts(token_ids), keys, subject.name

    def work_on_encoder(
        subject: EncoderSubject,
    ) -> "tuple[AttentionView, list[str], tuple[int, ...], str]":
        from mlxchat.cli.words import find_word
        from mlxchat.lens.attention import read_encoder_attention

        if is_chat:
            raise UsageError("an encoder has no chat template; leave --chat out")
        tokenizer, encoder = subject.embedder.tokenizer, subject.embedder.model
        token_ids = subject.encode(text)
        keys = () if word is None else find_word(tokenizer, token_ids, word)
        view = read_encoder_attention(encoder, token_ids)  # type: ignore[arg-type]  # it is one
        _check(view, layer, head)
        return view, [tokenizer.token_text(i) for i in token_ids], keys, subject.name

    view, texts, keys, name = look(model, adapter, work, work_on_encoder)
    from mlxchat.cli.inspect import render_attention

    drawn = render_attention.Drawn(view, texts, name, keys, layer, head)
    show(
        to_json(view, texts),
        lambda console: render_attention.make_view(drawn, console),
        lambda: render_attention.make_page(drawn),
        **out,
    )


def _check(view: "AttentionView", layer: int | None, head: int | None) -> None:
    for name, number, limit in (
        ("layer", layer, len(view.maps)),
        ("head", head, len(view.maps[0])),
    ):
        if number is not None and not 0 <= number < limit:
            raise UsageError(f"--{name} {number} is not allowed; give 0 to {limit - 1}")
    if head is not None and layer is None:
        raise UsageError(f"--head {head} needs a layer; add --layer N")


def to_json(view: "AttentionView", texts: list[str]) -> Json:
    """Returns what `--json` prints: row q of a pattern is what token q looks at."""
    return {
        "tokens": texts,
        "maps": [
            {"layer": layer, "head": head, "pattern": pattern}
            for layer, heads in enumerate(view.maps)
            for head, pattern in enumerate(heads)
        ],
    }
