"""`mlxchat inspect patch`: what a state holds, told by the model itself (Patchscope)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.patchscope import Patched

# The few-shot prompt of the paper: repeat what is put in the place of the question mark.
TEMPLATE = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked; see the options of the command."""

    source: str
    at: str | None
    template: str
    placeholder: str
    layer: int | None
    into: int | None
    max_tokens: int
    is_chat: bool


@dataclass(frozen=True, slots=True)
class PatchView:
    """What was found, with the texts of its tokens.

    Attributes:
        question: What was asked.
        model: As a person knows it.
        plain: What is written without a state.
        rows: What is written with each.
        names: Texts of the likeliest first tokens.
        texts: What is written, by layer.
        at: Position and text of the token whose state is taken.
        place: Of the token that gives way.
        is_inside: Tokens of the prompt follow it.
    """

    question: Question
    model: str
    plain: "Patched"
    rows: "list[Patched]"
    names: dict[int, str]
    texts: dict[int | None, str]
    at: tuple[int, str]
    place: tuple[int, str]
    is_inside: bool


@click.command()
@click.argument("source")
@click.option("--at", metavar="TOKEN", help="The token whose state is taken; else the last.")
@click.option("--template", metavar="TEXT", default=TEMPLATE, help="The prompt that it is put in.")
@click.option("--placeholder", metavar="TEXT", default="?", help="The word there that gives way.")
@click.option("--layer", type=int, metavar="N", help="Take it after block N; else after each.")
@click.option("--into", type=int, metavar="N", help="Put it in after block N; else the same.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=12, metavar="N", help="Write at most N tokens."
)
@look_options(chat=True)
def patch(
    model: str | None, adapter: str | None, as_json: bool, html: str | None, **asked: Any
) -> None:
    """Put the state of a token of SOURCE into another prompt, and let the model go on.

    What it writes shows what the state holds after each layer. The default prompt asks to repeat
    what stands in the place of its question mark. --chat makes messages of both texts.
    """
    question = Question(**asked)
    found = look(model, adapter, lambda subject: _patch(subject, question))
    from mlxchat.cli.inspect import render_patch

    show(
        {
            "source": question.source,
            "at": list(found.at),
            "template": question.template,
            "placeholder": list(found.place),
            "plain": to_json(found.plain, found),
            "layers": [to_json(row, found) for row in found.rows],
        },
        lambda console: render_patch.make_view(found),
        lambda: render_patch.make_page(found),
        as_json=as_json,
        html=html,
    )


def _patch(subject: Subject, asked: Question) -> PatchView:
    from mlxchat.cli.words import find_word
    from mlxchat.lens.patchscope import Place, patch_states

    tokenizer, source = subject.tokenizer, asked.source
    ids, prompt = (subject.encode(t, is_chat=asked.is_chat) for t in (source, asked.template))
    taken = find_word(tokenizer, ids, asked.at)[-1] if asked.at else find_last(subject, ids, source)
    place = find_word(tokenizer, prompt, asked.placeholder)[-1]
    plain, rows = patch_states(
        subject.model,
        Place(ids, taken),
        Place(prompt, place),
        layers=None if asked.layer is None else [asked.layer],
        into=asked.into,
        max_tokens=asked.max_tokens,
        eos_ids=tokenizer.eos_ids,
        check=subject.check,
    )
    tokens = {i for row in (plain, *rows) for i, _ in row.top}
    return PatchView(
        question=asked,
        model=subject.name,
        plain=plain,
        rows=rows,
        names={i: tokenizer.token_text(i) for i in tokens},
        texts={r.layer: tokenizer.decode(r.token_ids) for r in (plain, *rows)},
        at=(taken, tokenizer.token_text(ids[taken])),
        place=(place, tokenizer.token_text(prompt[place])),
        is_inside=place < len(prompt) - 1,
    )


def find_last(subject: Subject, ids: list[int], source: str) -> int:
    """Returns the position of the source's last token; of a message that is its last word."""
    from mlxchat.cli.words import find_word

    words = source.split()
    return find_word(subject.tokenizer, ids, words[-1])[-1] if words else len(ids) - 1


def to_json(row: "Patched", view: PatchView) -> dict[str, Any]:
    """Returns what `--json` prints of one layer."""
    return {
        "layer": row.layer,
        "into": row.into,
        "text": view.texts[row.layer],
        "tokens": list(row.token_ids),
        "top": [[i, view.names[i], p] for i, p in row.top],
        "divergence": row.divergence,
    }
