"""`mlxchat inspect patch`: what a state holds, told by the model itself (Patchscope)."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.patchscope import Patched

# The few-shot prompt of the paper: repeat what is put in the place of the question mark.
TEMPLATE = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"


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
    source: str,
    at: str | None,
    template: str,
    placeholder: str,
    layer: int | None,
    into: int | None,
    max_tokens: int,
    is_chat: bool,
    model: str | None,
    **out: Any,
) -> None:
    """Put the state of a token of SOURCE into another prompt, and let the model go on.

    What it writes shows what the state holds after each layer. The default prompt asks to repeat
    what stands in the place of its question mark. --chat makes messages of both texts.
    """

    def work(subject: Subject) -> "tuple[Patched, list[Patched], dict[str, Any]]":
        from mlxchat.cli.words import find_word
        from mlxchat.lens.patchscope import Place, patch_states

        tokenizer = subject.tokenizer
        ids, prompt = (subject.encode(text, is_chat=is_chat) for text in (source, template))
        taken = find_word(tokenizer, ids, at)[-1] if at else find_last(subject, ids, source)
        place = find_word(tokenizer, prompt, placeholder)[-1]
        plain, rows = patch_states(
            subject.model,
            Place(ids, taken),
            Place(prompt, place),
            layers=None if layer is None else [layer],
            into=into,
            max_tokens=max_tokens,
            eos_ids=tokenizer.eos_ids,
            check=subject.check,
        )
        tokens = {i for row in (plain, *rows) for i, _ in row.top} | {ids[taken], prompt[place]}
        return (
            plain,
            rows,
            {
                "names": {i: tokenizer.token_text(i) for i in tokens},
                "texts": {r.layer: tokenizer.decode(r.token_ids) for r in (plain, *rows)},
                "model": subject.name,
                "at": (taken, tokenizer.token_text(ids[taken])),
                "place": (place, tokenizer.token_text(prompt[place])),
                "num_prompt": len(prompt),
            },
        )

    plain, rows, about = look(model, work)
    about |= {"source": source, "template": template}
    from mlxchat.cli.inspect import render_patch

    show(
        {
            "source": source,
            "at": list(about["at"]),
            "template": template,
            "placeholder": list(about["place"]),
            "plain": to_json(plain, about),
            "layers": [to_json(row, about) for row in rows],
        },
        lambda console: render_patch.make_view(plain, rows, about),
        lambda: render_patch.make_page(plain, rows, about),
        **out,
    )


def find_last(subject: Subject, ids: list[int], source: str) -> int:
    """Returns the position of the source's last token; of a message that is its last word."""
    from mlxchat.cli.words import find_word

    words = source.split()
    return find_word(subject.tokenizer, ids, words[-1])[-1] if words else len(ids) - 1


def to_json(row: "Patched", about: dict[str, Any]) -> dict[str, Any]:
    """Returns what `--json` prints of one layer."""
    return {
        "layer": row.layer,
        "into": row.into,
        "text": about["texts"][row.layer],
        "tokens": list(row.token_ids),
        "top": [[i, about["names"][i], p] for i, p in row.top],
        "divergence": row.divergence,
    }
