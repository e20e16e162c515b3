"""Tokens and merges for people: the text as coloured pieces, and each word growing together."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import heading, make_table, show_token
from mlxchat.cli.render import format_count
from mlxchat.model.detokenizer import spell_bytes

if TYPE_CHECKING:
    from mlxchat.cli.inspect.tokens import Cut

_STYLES = ("black on cyan", "black on green", "black on yellow", "black on magenta")
_SPECIAL = "bold white on red"
_MOST_WORDS = 12


def make_view(cut: "Cut") -> list[RenderableType]:
    """Returns the pieces, a table of them, and the merges of the first words."""
    size = len(cut.text.encode("utf-8", "replace"))
    count = f"{format_count(len(cut.token_ids))} tokens, {format_count(size)} bytes"
    per = f", {size / len(cut.token_ids):.2f} bytes a token" if cut.token_ids else ""
    parts: list[RenderableType] = [
        Text.assemble(("tokens", "bold"), (f"  {cut.model}: {count}{per}", "dim")),
        _pieces(cut),
        _table(cut),
    ]
    merges = _merges(cut)
    parts.append(heading("merges", _merge_note(cut)))
    return [*parts, *merges]


def _pieces(cut: "Cut") -> Text:
    """Returns the text with a colour for each token; a bar stands where a message ends."""
    line, plain = Text(), 0
    for index, text in enumerate(cut.texts):
        if cut.special[index]:
            line.append(show_token(text), style=_SPECIAL)
        else:
            line.append(show_token(text), style=_STYLES[plain % len(_STYLES)])
            plain += 1
        if index + 1 in cut.borders:
            line.append(" ┃ ", style="bold")
        if text.endswith("\n"):
            line.append("\n")
    return line


def _table(cut: "Cut") -> RenderableType:
    table = make_table("#>", "piece", "id>", "bytes~", "")
    for index, (i, text, piece) in enumerate(
        zip(cut.token_ids, cut.texts, cut.pieces, strict=True)
    ):
        kind = "special" if cut.special[index] else ""
        if index + 1 in cut.borders:
            kind = f"{kind} end of message {cut.borders.index(index + 1) + 1}".strip()
        table.add_row(
            str(index), Text(show_token(text)), str(i), piece.hex(" "), Text(kind, style="dim")
        )
    return table


def _merge_note(cut: "Cut") -> str:
    if cut.merging.kind != "BPE" or not cut.merging.words:
        return f"none: this tokenizer is of the kind {cut.merging.kind}"
    return f"{len(cut.merging.merges)} in all; the number is the rule's rank"


def spell(symbol: str) -> str:
    """Returns a symbol of the vocabulary as a person reads it."""
    raw = spell_bytes(symbol)
    text = raw.decode("utf-8", "replace")
    return show_token(text) if "\ufffd" not in text else raw.hex(" ")


def _merges(cut: "Cut") -> list[RenderableType]:
    by_word: dict[int, list[Text]] = {}
    symbols = [list(word) for word in cut.merging.words]
    for merge in cut.merging.merges:
        word = symbols[merge.word]
        line = Text(f"{merge.rank:>7}  ", style="dim")
        for index, symbol in enumerate(word):
            style = "bold green" if index in (merge.position, merge.position + 1) else ""
            line.append(spell(symbol), style=style).append(" ")
        word[merge.position : merge.position + 2] = [merge.left + merge.right]
        line.append("→ ", style="dim").append(spell(merge.left + merge.right), style="bold")
        by_word.setdefault(merge.word, []).append(line)
    lines: list[RenderableType] = []
    for number, found in list(by_word.items())[:_MOST_WORDS]:
        pieces = " ".join(spell(p) for p in cut.merging.pieces[number])
        lines += [Text(f"  {pieces}", style="cyan"), *found]
    if len(by_word) > _MOST_WORDS:
        more = len(by_word) - _MOST_WORDS
        lines.append(Text(f"… and {more} more words; --json has all merges", style="dim"))
    return lines


_INKS = ("#bde3f2", "#c9ecc5", "#fbe9a9", "#efc9ec")


def make_page(cut: "Cut") -> str:
    """Returns a web page: the text as coloured pieces, pieces with ids and bytes, all merges."""
    chips, plain = [], 0
    for index, text in enumerate(cut.texts):
        ground = "#e5484d" if cut.special[index] else _INKS[plain % len(_INKS)]
        ink = "white" if cut.special[index] else "#1d2129"
        plain += not cut.special[index]
        told = f"id {cut.token_ids[index]}, bytes {cut.pieces[index].hex(' ')}"
        chips.append(
            f'<span title="{page.escape(told)}" style="background:{ground};color:{ink};'
            f'padding:.15rem .25rem;border-radius:3px;display:inline-block;margin:1px">'
            f"{page.escape(show_token(text))}</span>"
        )
        if index + 1 in cut.borders:
            chips.append("<b>┃</b>")
        if text.endswith("\n"):
            chips.append("<br>")
    rows: list[list[str | float | int]] = [
        [n, show_token(text), i, piece.hex(" "), "special" if special else ""]
        for n, (i, text, piece, special) in enumerate(
            zip(cut.token_ids, cut.texts, cut.pieces, cut.special, strict=True)
        )
    ]
    merges: list[list[str | float | int]] = [
        [m.word, spell(m.left), spell(m.right), spell(m.left + m.right), m.rank]
        for m in cut.merging.merges
    ]
    sections = [
        ("", f"<p>{''.join(chips)}</p>"),
        ("Pieces", page.make_table(["#", "piece", "id", "bytes", ""], rows)),
    ]
    if merges:
        table = page.make_table(["word", "left", "right", "becomes", "rank"], merges)
        sections.append(("Merges, in order", table))
    return page.make_page("Tokens", f"{cut.model}: {len(cut.token_ids)} tokens", sections)
