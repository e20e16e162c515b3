"""`mlxchat inspect lens`: what the model would say after each of its layers."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.logit_lens import LensView


@click.command()
@click.argument("text")
@click.option(
    "--top", type=click.IntRange(1, 100), default=5, metavar="N", help="Show the N likeliest."
)
@look_options(chat=True)
def lens(
    text: str, top: int, is_chat: bool, model: str | None, adapter: str | None, **out: Any
) -> None:
    """Show what the model would say if it stopped after each layer (logit lens).

    Each layer's residual stream goes through the model's own final norm and head; the last layer is
    the model's answer itself.
    """

    def work(subject: Subject) -> "tuple[LensView, dict[int, str], str]":
        from mlxchat.lens.logit_lens import read_lens

        view = read_lens(subject.model, subject.encode(text, is_chat=is_chat), top=top)
        return view, name_tokens(subject.tokenizer, view), subject.name

    view, names, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_lens

    show(
        to_json(view, names),
        lambda console: render_lens.make_view(view, names, name, console.width),
        lambda: render_lens.make_page(view, names, name),
        **out,
    )


def name_tokens(tokenizer: Any, view: "LensView") -> dict[int, str]:
    """Returns the texts of all tokens of a view."""
    ids = {*view.token_ids, *view.final}
    ids |= {i for layer in view.layers for r in layer for i, _ in r.top}
    return {i: tokenizer.token_text(i) for i in ids}


def to_json(view: "LensView", names: dict[int, str]) -> Json:
    """Returns what `--json` prints; rank 1 is the likeliest, entropy is in nats."""
    return {
        "tokens": [names[i] for i in view.token_ids],
        "layers": [
            {
                "layer": number,
                "positions": [
                    {
                        "top": [[i, names[i], p] for i, p in reading.top],
                        "rank": reading.rank,
                        "entropy": reading.entropy,
                    }
                    for reading in layer
                ],
            }
            for number, layer in enumerate(view.layers)
        ],
    }
