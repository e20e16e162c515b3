"""`mlxchat inspect walk`: one step of the model, from the text to the next token."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.walk import Walk


@click.command()
@click.argument("text")
@click.option(
    "--temp",
    type=click.FloatRange(0),
    default=1.0,
    metavar="X",
    help="Temperature of the last step; 0 takes the likeliest token.",
)
@look_options(chat=True)
def walk(
    text: str, temp: float, is_chat: bool, model: str | None, adapter: str | None, **out: Any
) -> None:
    """Follow one step of the model: text, ids, vectors, every part of every block, next token."""

    def work(subject: Subject) -> "tuple[Walk, dict[int, str], str]":
        from mlxchat.lens.walk import walk as follow

        seen = follow(subject.model, subject.encode(text, is_chat=is_chat), temperature=temp)
        ids = {*seen.token_ids, *(i for i, _ in seen.top), *seen.lens.final}
        ids |= {i for layer in seen.lens.layers for i, _ in layer[0].top}
        return seen, {i: subject.tokenizer.token_text(i) for i in ids}, subject.name

    seen, names, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_walk

    show(
        to_json(seen, names),
        lambda console: render_walk.make_walk_view(seen, names, name, text),
        lambda: render_walk.make_walk_page(seen, names, name, text),
        **out,
    )


def to_json(seen: "Walk", names: dict[int, str]) -> Json:
    """Returns what `--json` prints; norms are of the last position."""
    return {
        "tokens": [names[i] for i in seen.token_ids],
        "steps": [{"name": s.name, "shape": list(s.shape), "norm": s.norm} for s in seen.steps],
        "probs_top": [[i, names[i], p] for i, p in seen.top],
    }
