"""A patched prompt for people: what the model writes with the state of each layer."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.heat import shade
from mlxchat.cli.inspect.paint import show_token
from mlxchat.cli.render import one_line, sanitize

if TYPE_CHECKING:
    from mlxchat.cli.inspect.patch import PatchView
    from mlxchat.lens.patchscope import Patched


def make_view(view: "PatchView") -> list[RenderableType]:
    """Returns the table over layers, under the two texts with the tokens marked."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("from", "into"):
        table.add_column(name, justify="right")
    table.add_column("goes on", ratio=1)
    table.add_column("first token", no_wrap=True)
    table.add_column("it moved by", justify="right", no_wrap=True)
    table.add_row("-", "-", _text(view.plain, view), _top(view.plain, view), "", style="dim")
    for row in view.rows:
        is_new = row.token_ids != view.plain.token_ids
        table.add_row(
            str(row.layer),
            str(row.into),
            Text(_text(row, view), style="bold" if is_new else ""),
            _top(row, view),
            Text(f" {row.divergence:.2f} nats ", style=shade(min(row.divergence / 5, 1.0))),
        )
    title = Text.assemble(("patch", "bold"), (f"  {one_line(view.model)}", "dim"))
    parts: list[RenderableType] = [title, _line("source", view.question.source, view.at)]
    parts += [_line("prompt", view.question.template, view.place), Text(""), table]
    if note := make_note(view):
        parts += [Text(""), Text(note, style="dim")]
    return parts


def make_note(view: "PatchView") -> str:
    """Says why the last block can change nothing."""
    if view.rows and view.is_inside and view.rows[-1].divergence == 0:
        return "After the last block a state is read by its own token alone, so nothing changes."
    return ""


def _line(name: str, text: str, place: tuple[int, str]) -> Text:
    """Returns a text on one line, the token that counts in it marked."""
    text = sanitize(text.strip().replace("\n", "⏎"))
    word = place[1].strip()
    start = text.rfind(word) if word else -1
    shown = Text.assemble((f"{name:<8}", "dim"), text)
    if start >= 0:
        shown.stylize("bold reverse", 8 + start, 8 + start + len(word))
    return shown


def _text(row: "Patched", view: "PatchView") -> str:
    return sanitize(one_line(view.texts[row.layer].strip())) or "(nothing)"


def _top(row: "Patched", view: "PatchView") -> Text:
    shown = Text()
    for token, prob in row.top[:2]:
        shown.append(show_token(view.names[token]))
        shown.append(f" {prob:.2f}  ", style="dim")
    return shown


def make_page(view: "PatchView") -> str:
    """Returns a web page of the same table."""
    body: list[list[str | float | int]] = []
    for row in (view.plain, *view.rows):
        first = "  ".join(f"{show_token(view.names[i])} {p:.2f}" for i, p in row.top)
        place = ["-", "-"] if row.layer is None else [str(row.layer), str(row.into)]
        body.append([*place, view.texts[row.layer], first, row.divergence])
    header = ["from layer", "into layer", "goes on", "first token", "changed by (nats)"]
    return page.make_page(
        "Patchscope",
        f"{view.model}: the state of {view.at[1].strip()!r} in {view.question.source!r}, put in the"
        f" place of {view.place[1].strip()!r} in {view.question.template!r}",
        [("", page.make_table(header, body))],
    )
