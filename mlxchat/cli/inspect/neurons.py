"""`mlxchat inspect neurons`: the most active feed-forward units and the tokens they write."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.neurons import NeuronView


@click.command()
@click.argument("text")
@click.option(
    "--top", type=click.IntRange(1, 100), default=4, metavar="N", help="Units of each layer."
)
@click.option("--at", "word", metavar="WORD", help="Rank the units by what they do at WORD.")
@look_options(chat=True)
def neurons(
    text: str,
    top: int,
    word: str | None,
    is_chat: bool,
    model: str | None,
    adapter: str | None,
    **out: Any,
) -> None:
    """Show the most active feed-forward units of each layer and the tokens they write.

    A unit's column of the down projection, through the final norm and the head, names the tokens
    that it makes likelier.
    """

    def work(subject: Subject) -> "tuple[NeuronView, list[str], dict[int, str], str]":
        from mlxchat.cli.words import find_word
        from mlxchat.lens.neurons import read_neurons

        token_ids = subject.encode(text, is_chat=is_chat)
        at = None if word is None else find_word(subject.tokenizer, token_ids, word)[-1]
        view = read_neurons(subject.model, token_ids, count=top, position=at)
        ids = {i for layer in view.layers for unit in layer for i, _ in unit.writes}
        names = {i: subject.tokenizer.token_text(i) for i in ids}
        return view, subject.texts(token_ids), names, subject.name

    view, texts, names, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_walk

    show(
        to_json(view, texts, names),
        lambda console: render_walk.make_neuron_view(view, texts, names, name),
        lambda: render_walk.make_neuron_page(view, texts, names, name),
        **out,
    )


def to_json(view: "NeuronView", texts: list[str], names: dict[int, str]) -> Json:
    """Returns what `--json` prints."""
    return {
        "tokens": texts,
        "layers": [
            {
                "layer": number,
                "units": [
                    {
                        "unit": unit.unit,
                        "position": unit.position,
                        "activation": unit.activation,
                        "share": unit.share,
                        "activations": list(unit.activations),
                        "writes": [[i, names[i], score] for i, score in unit.writes],
                    }
                    for unit in layer
                ],
            }
            for number, layer in enumerate(view.layers)
        ],
    }
