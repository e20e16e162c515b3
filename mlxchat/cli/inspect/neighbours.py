"""`mlxchat inspect neighbours`: the words nearest to a word in the embedding table."""

from typing import Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show

Named = list[tuple[int, str, float]]


@click.command()
@click.argument("word")
@click.option("--top", type=click.IntRange(1, 1000), default=10, metavar="N", help="Show N words.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot"]),
    default="cosine",
    help="Angle alone, or length too.",
)
@look_options()
def neighbours(
    word: str, top: int, metric: Any, model: str | None, adapter: str | None, **out: Any
) -> None:
    """Show the tokens whose embedding rows are nearest to WORD's.

    Where the output table is another one than the input table, both are searched.
    """

    def work(subject: Subject) -> tuple[str, str, list[tuple[str, Named]], str]:
        from mlxchat.cli.words import find_token
        from mlxchat.lens.embeddings import find_neighbours, make_table
        from mlxchat.model.tables import input_table, output_table

        token_id, note = find_token(subject.tokenizer, word)
        found = []
        tables = (("input", input_table(subject.model)), ("output", output_table(subject.model)))
        for name, rows in tables:
            if rows is not None:
                table = make_table(rows, subject.tokenizer.vocab_size)
                near = find_neighbours(table, token_id, count=top, metric=metric)
                found.append((name, name_all(subject, near)))
        return subject.texts([token_id])[0], note, found, subject.name

    token, note, found, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_words

    facts: Json = {"results": [list(row) for row in found[0][1]]}
    if len(found) > 1:
        facts["output_results"] = [list(row) for row in found[1][1]]
    tables = [(f"{side} table" if len(found) > 1 else "", rows) for side, rows in found]
    title = render_words.Title("neighbours", f"of {token.strip() or token}", name, metric, note)
    show(
        facts,
        lambda console: render_words.make_view(title, tables),
        lambda: render_words.make_page(title, tables),
        **out,
    )


def name_all(subject: Subject, scored: list[tuple[int, float]]) -> Named:
    """Adds the texts of tokens."""
    return [(i, subject.tokenizer.token_text(i), score) for i, score in scored]
