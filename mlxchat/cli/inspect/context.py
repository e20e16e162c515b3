"""`mlxchat inspect context`: how a word's vector changes with what stands around it."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Subject, look, look_options, show
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.lens.context import ContextView


@click.command()
@click.argument("word")
@click.argument("texts", nargs=-1, metavar="TEXT1 TEXT2...")
@look_options()
def context(
    word: str, texts: tuple[str, ...], model: str | None, adapter: str | None, **out: Any
) -> None:
    """Compare the vectors of WORD in two or more texts, layer by layer.

    At layer 0, the embedding, they are equal; each block moves them apart, the more the less alike
    the texts are. A word of several tokens stands for by its last one.
    """
    if len(texts) < 2:
        raise UsageError("give two texts or more with the word in each")

    def work(subject: Subject) -> "tuple[ContextView, str, str]":
        from mlxchat.cli.words import find_word
        from mlxchat.lens.context import compare_contexts

        coded = [subject.encode(text) for text in texts]
        places = [find_word(subject.tokenizer, ids, word) for ids in coded]
        view = compare_contexts(subject.model, coded, [place[-1] for place in places])
        note, count = "", len(places[0])
        if count > 1:
            last = subject.texts([coded[0][places[0][-1]]])[0]
            note = f"{word!r} is {count} tokens; its last one, {last!r}, stands for it"
        return view, note, subject.name

    view, note, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_words

    title = render_words.Title("context", f"of {word}", name, "cosine", note)
    show(
        {"layers": [list(row) for row in view.layers]},
        lambda console: render_words.make_context_view(title, view, texts),
        lambda: render_words.make_context_page(title, view, texts),
        **out,
    )
