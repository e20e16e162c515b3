"""Text that is safe and fits, numbers, progress, the line under the prompt: pure functions.

Text that a model or a file produced is untrusted: `sanitize` takes away what a terminal would obey.
"""

import re
from typing import TYPE_CHECKING

from mlxchat.counts import format_count as format_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlxchat.chat.draft import DraftCost
    from mlxchat.chat.results import (
        BatchProgress,
        LoadProgress,
        PrefillProgress,
        SummaryProgress,
    )
    from mlxchat.chat.session import Session


def _make_safe_table() -> dict[int, str]:
    table = {code: chr(0x2400 + code) for code in range(0x20)}  # the control pictures: ␛ for ESC
    table[0x7F] = "␡"
    for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        table[code] = f"<U+{code:04X}>"  # C1 controls, bidirectional overrides and isolates
    for code in range(0xD800, 0xE000):
        table[code] = "\ufffd"  # half a character cannot be written as UTF-8
    table[ord("\r")] = (
        ""  # it could only overwrite its own line; before a line feed it means nothing
    )
    del table[ord("\n")], table[ord("\t")]
    return table


_SAFE = _make_safe_table()
_FIRST_COMBINING = "\u0300"  # all before it take one column
_GLUE = "\0"  # a blank where no line is broken; `sanitize` lets none through


def sanitize(text: str) -> str:
    r"""Replaces what a terminal would obey by something that can be seen.

    Every escape sequence begins with ESC or a C1 control; what follows is plain text without it. So
    each character is judged alone, and a sequence that is split over two pieces of a stream is as
    harmless as a whole one. Line feed and tab stay.
    """
    return text.translate(_SAFE)


def one_line(text: str) -> str:
    """Returns `text` sanitised, with every run of white space made one space."""
    return sanitize(" ".join(text.split()))


def cut(text: str, width: int) -> str:
    """Returns a text that takes no more than so many columns, the cut marked."""
    if num_columns(text) <= width:
        return text
    if text.isascii():
        return f"{text[: max(width - 1, 0)]}…"
    from mlxchat.cli.wrap import split_at_width

    return f"{split_at_width(text, width - 1)[0]}…"


def short_model(name: str) -> str:
    """Returns the last part of a model's name, which may be a path."""
    return one_line(name).rstrip("/").rpartition("/")[2]


def format_rereads(num_read: int, num_all: int) -> str:
    """Returns the line on what a change costs."""
    return f"The next turn reads {format_count(num_read)} of {format_count(num_all)} tokens again."


def format_tokens(count: int) -> str:
    """Returns a number of tokens: `1 token`, `2 310 tokens`."""
    return f"{format_count(count)} token{'s' * (count != 1)}"


def format_share(share: float, digits: int = 0) -> str:
    """Returns a share of 1 in hundredths: `23 %`."""
    return f"{100 * share:.{digits}f} %"


def format_counts_in(text: str) -> str:
    """Returns a text with the thousands of all its whole numbers set apart."""
    return re.sub(r"(?<![\w.,])\d{4,}(?![\w.])", lambda match: format_count(int(match[0])), text)


def format_bar(share: float, width: int = 8) -> str:
    """Returns a bar of `width` columns that is filled to a share of 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


def format_bytes(size: int) -> str:
    """Returns a size in the binary unit that suits it: `12.5 MiB`."""
    if size < 1024:
        return f"{size} B"
    for power, unit in enumerate(("KiB", "MiB"), start=1):
        if size < 1024 ** (power + 1):
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size / 1024**3:.1f} GiB"


def format_seconds(seconds: float) -> str:
    """Returns a duration with the digits that matter: `0.083 s`, `4.2 s`, `2 min 05 s`."""
    if seconds < 0.1:
        return f"{seconds:.3f} s"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def format_age(seconds: float) -> str:
    """Returns how long ago something was, in the unit that suits it: `3 h ago`."""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds / unit)} {name} ago"
    return f"{int(seconds / 86400)} d ago"


def format_rate(tok_per_s: float | None) -> str:
    """Returns a rate in tokens per second without its unit, `-` where there is none."""
    if tok_per_s is None:
        return "-"
    return f"{tok_per_s:,.{1 if tok_per_s < 100 else 0}f}".replace(",", " ")


def format_table(rows: list[tuple[str, str]]) -> str:
    """Returns names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {sanitize(value)}".rstrip() for name, value in rows)


def format_columns(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Returns a table with a header; every column is as wide as its widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def wrap_words(line: str, width: int, indent: str = "") -> str:
    """Breaks a line that is too wide between words; a word that is wider still is left whole.

    A number with its thousands set apart is one word. The rows after the first are indented.
    """
    if num_columns(line) <= width:
        return line
    from mlxchat.cli.wrap import fill

    glued = re.sub(r"(?<=\d) (?=\d{3}(?!\d)|%)", _GLUE, line)
    return f"\n{indent}".join(fill(glued, width, len(indent))).replace(_GLUE, " ")


def wrap_cells(line: str, width: int) -> str:
    """Breaks a line of a table that is too wide; the rest stands under one of its columns."""
    columns = [match.end() for match in re.finditer(r"^ +| {2,}(?=\S)", line)]
    at = max((column for column in columns if column <= width // 2), default=2)
    return wrap_words(line, width, " " * at)


def wrap_parts(line: str, width: int) -> str:
    """Breaks a line that is too wide at its ` · ` marks."""
    return "\n".join(fill_rows(line.split(" · "), " · ", width))


def fill_rows(parts: "Iterable[str]", separator: str, width: int) -> list[str]:
    """Puts parts side by side in rows of a width; a part that is wider has a row of its own."""
    rows = [""]
    for part in parts:
        joined = f"{rows[-1]}{separator}{part}" if rows[-1] else part
        if num_columns(joined) <= width or not rows[-1]:
            rows[-1] = joined
        else:
            rows.append(part)
    return rows


def num_columns(text: str) -> int:
    """Returns the columns that a line takes on a terminal."""
    if text.isascii() or max(text) < _FIRST_COMBINING:
        return len(text)
    from mlxchat.cli.wrap import text_width  # only here: the prompt comes first

    return text_width(text)


def format_batch_progress(event: "BatchProgress", elapsed_s: float) -> str:
    """Returns one line on how far answers that are decoded together have come."""
    rate = f" · {format_rate(event.num_tokens / elapsed_s)} tok/s" if elapsed_s > 0 else ""
    tokens = format_count(event.num_tokens)
    return f"{event.done} of {event.total} answers · {tokens} tokens{rate}"


def format_progress(
    event: "LoadProgress | PrefillProgress | SummaryProgress", elapsed_s: float
) -> str:
    """Returns one line on how far a load or a prefill has come.

    Args:
        event: What came last.
        elapsed_s: Seconds since this phase began.
    """
    if not hasattr(event, "total"):
        return f"summarising · {format_count(event.done)} characters"
    phase = getattr(event, "phase", "prefill")
    name = {"download": "downloading", "load": "loading", "warm-up": "warming up"}.get(
        phase, "reading"
    )
    name += f" {format_bar(event.done / event.total)}" if event.total else ""
    if phase == "warm-up":
        return f"{name} {event.done}/{event.total}"
    if phase != "prefill":
        text = f"{name} {format_bytes(event.done)} of {format_bytes(event.total)}"
    else:
        text = f"{name} {format_count(event.done)} of {format_count(event.total)} tokens"
    if not event.done or elapsed_s <= 0:
        return text
    per_s = event.done / elapsed_s
    rate = f"{format_bytes(int(per_s))}/s" if phase != "prefill" else f"{format_rate(per_s)} tok/s"
    return f"{text} · {rate} · {format_seconds((event.total - event.done) / per_s)} left"


def format_banner(version: str, model: str | None) -> str:
    """Returns what the chat says when it opens.

    Args:
        version: Of mlxchat.
        model: The model's name; None is the built-in one.
    """
    keys = "/help lists commands · Alt-Enter new line · Ctrl-C stops · Ctrl-D leaves"
    if model is not None:
        return f"mlxchat {version} · {one_line(model)}\n{keys}"
    return (
        f"mlxchat {version} · the built-in model, a tiny demo that knows a small world\n"
        "For a real model: mlxchat -m mlx-community/Qwen3-4B-4bit\n" + keys
    )


def format_cost(cost: "DraftCost") -> str:
    """Returns what it would cost to send a draft: `+412 tokens ≈ 0.9 s, 23 % of context`."""
    seconds = "" if cost.seconds is None else f" ≈ {cost.seconds:.1f} s"
    if cost.seconds is not None and cost.seconds < 0.05:
        seconds = " < 0.1 s"
    share = f"{format_share(cost.context_share)} of context"
    if cost.context_share >= 1:
        share = "more than the context holds"
    return f"+{format_tokens(cost.num_tokens)}{seconds}, {share}"


def format_toolbar(
    session: "Session | None",
    model: str | None,
    progress: str,
    width: int = 80,
    cost: "DraftCost | None" = None,
) -> str:
    """Returns the line under the prompt: model, context, last rate, memory, cached tokens.

    Args:
        session: None until it is made.
        model: The name that was asked for; None is the built-in one.
        progress: What the load says of itself while it lasts.
        width: Columns; what does not fit is left out from the end.
        cost: Of the draft, which goes before all but the model.
    """
    info = None if session is None else session.info
    if session is None or info is None:
        return f"{one_line(model or 'built-in model')} · {progress or 'loading'}"
    used, limit = session.context_used, info.context_limit
    share = f" ({format_share(used / limit)}) {format_bar(used / limit)}" if limit else ""
    name = short_model(info.model)
    room = f"{format_count(used)} of {format_count(limit)} tokens{share}"
    if cost is not None:
        text = format_cost(cost)
        if num_columns(f"{name} · {text}") > width:
            return cut(text, width)
        parts = [name, text, room]
    else:
        if num_columns(f"{name} · {room}") > width:
            room = room.rpartition(" ")[0] if limit else room  # without the bar
        parts = [name, room]
    if (last := session.last) is not None:
        if last.timing.decode_tok_per_s is not None:
            parts.append(f"{format_rate(last.timing.decode_tok_per_s)} tok/s")
        size = format_bytes(last.timing.weight_bytes + last.timing.kv_bytes)
        parts.append(re.sub(r"\d{3}\.\d", lambda match: f"{float(match[0]):.0f}", size))
        parts.append(f"{format_count(last.usage.cached_tokens)} cached")
    while len(parts) > 1 and num_columns(" · ".join(parts)) > width:
        parts.pop()
    return " · ".join(parts)
