"""`mlxchat inspect analogy`: arithmetic with the rows of the embedding table."""

from typing import Any

import click

from mlxchat.cli.inspect.looking import Subject, look, look_options, show
from mlxchat.cli.inspect.neighbours import Named, name_all


@click.command()
@click.argument("a")
@click.argument("b")
@click.argument("c")
@click.option("--top", type=click.IntRange(1, 1000), default=10, metavar="N", help="Show N words.")
@look_options()
def analogy(
    a: str, b: str, c: str, top: int, model: str | None, adapter: str | None, **out: Any
) -> None:
    """Show the tokens nearest to A - B + C in the embedding table.

    `analogy Paris France Norway` asks: what is to Norway as Paris is to France? The three words
    themselves are left out, in any spelling.
    """

    def work(subject: Subject) -> tuple[Named, str, str]:
        from mlxchat.cli.words import find_token, spellings_of
        from mlxchat.lens.embeddings import find_analogy, make_table
        from mlxchat.model.tables import input_table

        found = [find_token(subject.tokenizer, word) for word in (a, b, c)]
        ids = [i for i, _ in found]
        table = make_table(input_table(subject.model), subject.tokenizer.vocab_size)
        excluded = spellings_of(subject.tokenizer, ids)
        near = find_analogy(table, *ids, count=top, excluded=excluded)
        return name_all(subject, near), "; ".join(n for _, n in found if n), subject.name

    named, note, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_words

    title = render_words.Title("analogy", f"{a} - {b} + {c}", name, "cosine", note)
    tables = [("", named)]
    show(
        {"results": [list(row) for row in named]},
        lambda console: render_words.make_view(title, tables),
        lambda: render_words.make_page(title, tables),
        **out,
    )
