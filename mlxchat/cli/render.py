"""Dataclasses to text for people; pure functions, nothing here writes.

Text that a model or a file produced is untrusted: `sanitize` takes away what a terminal would obey.
"""

import re
from typing import TYPE_CHECKING

from mlxchat.counts import format_count as format_count
from mlxchat.counts import format_ttft

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlxchat.chat.conversation import Branch
    from mlxchat.chat.draft import DraftCost
    from mlxchat.chat.results import (
        BatchProgress,
        LoadProgress,
        PrefillProgress,
        SessionInfo,
        Speculation,
        SummaryProgress,
        TurnResult,
        Verify,
    )
    from mlxchat.chat.session import Session
    from mlxchat.engine.prefix_cache import CacheReport


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


_STOP_NOTES = {
    "token_limit": " (stopped at the token limit)",
    "user_cancelled": " (stopped)",
    "context_full": " (the context is full)",
}


def format_turn_line(result: "TurnResult") -> str:
    """Returns the line after an answer: tokens, time to first token, rate with depth, reuse."""
    usage, timing = result.usage, result.timing
    parts = [
        f"{format_tokens(usage.completion_tokens)}{_STOP_NOTES.get(result.stop_reason, '')}",
        f"ttft {format_ttft(timing.ttft_s)}",
    ]
    if timing.decode_tok_per_s is not None:
        depth = format_count(usage.prompt_tokens)
        parts.append(f"{format_rate(timing.decode_tok_per_s)} tok/s at depth {depth}")
    if timing.bandwidth_use is not None:
        parts[-1] += f" ({format_share(timing.bandwidth_use)} of bandwidth)"
    if (speculation := result.speculation) is not None and speculation.drafted:
        parts.append(format_speculation(speculation))
    parts.append(format_counts_in(one_line(result.cache.reason)))
    return " · ".join(parts)


def format_speculation(speculation: "Speculation") -> str:
    """Returns what was gained by foreseeing tokens: `lookup saved 3.2 s (61 % accepted)`."""
    share = f"({format_share(speculation.accepted / max(speculation.drafted, 1))} accepted)"
    if speculation.saved_s < 0:
        return f"{speculation.source} cost {format_seconds(-speculation.saved_s)} {share}"
    return f"{speculation.source} saved {format_seconds(speculation.saved_s)} {share}"


CONTEXT_WARNINGS = (0.95, 0.8)  # shares of the context at which the person is told


def format_context_notice(used: int, limit: int) -> str:
    """Returns the notice that the context is filling up."""
    return (
        f"{format_share(used / limit)} of the context is used:"
        f" {format_count(used)} of {format_count(limit)} tokens;"
        " /compact summarises the oldest turns, /undo takes turns back, /reset starts over"
    )


def format_thought_line(seconds: float, num_tokens: int = 0) -> str:
    """Returns the line that closes a streamed piece of reasoning; 0 tokens were not counted."""
    tokens = f", {format_tokens(num_tokens)}" if num_tokens else ""
    return f"thought for {format_seconds(seconds)}{tokens}"


def format_summary_line(seconds: float, num_chars: int) -> str:
    """Returns the line that takes the place of a summary that was written, or begun."""
    return f"summary: {format_count(num_chars)} characters in {format_seconds(seconds)}"


def format_timing(result: "TurnResult") -> str:
    """Returns the `--timing` report: every phase with its time, tokens and rate."""
    usage, timing = result.usage, result.timing
    rows: list[tuple[str, float, int | None, float | None, str]] = [
        ("load", timing.load_s, None, None, ""),
        ("template", timing.template_s, usage.prompt_tokens, None, ""),
        ("restore", timing.restore_s, usage.cached_tokens, None, result.cache.source),
        ("prefill", timing.prefill_s, usage.prefill_tokens, timing.prefill_tok_per_s, ""),
        ("first token", timing.ttft_s, None, None, "since the message was sent"),
        (
            "decode",
            timing.decode_s,
            usage.completion_tokens,
            timing.decode_tok_per_s,
            _gaps(result),
        ),
        ("total", timing.total_s, None, None, ""),
    ]
    lines = [f"{'phase':<11} {'seconds':>9} {'tokens':>8} {'tok/s':>9}"]
    for name, seconds, tokens, rate, note in rows:
        count = "" if tokens is None else format_count(tokens)
        speed = "" if rate is None else format_rate(rate)
        lines.append(f"{name:<11} {seconds:>9.3f} {count:>8} {speed:>9}  {note}".rstrip())
    return "\n".join([*lines, *_format_use(result)])


def _gaps(result: "TurnResult") -> str:
    gaps = result.to_json()["timing"]["inter_token_ms"]
    if not gaps or gaps["p50"] is None:
        return ""
    return f"p50 {gaps['p50']:.1f}, p95 {gaps['p95']:.1f}, max {gaps['max']:.1f} ms"


def _format_use(result: "TurnResult") -> list[str]:
    usage, timing = result.usage, result.timing
    memory = (
        f"memory: peak {format_bytes(timing.peak_memory_bytes)}"
        f", weights {format_bytes(timing.weight_bytes)}, KV {format_bytes(timing.kv_bytes)}"
    )
    if timing.bandwidth_use is not None:
        memory += f"; {format_share(timing.bandwidth_use)} of the measured bandwidth"
    lines = [memory]
    if usage.settle_tokens or usage.typeahead_tokens:
        lines.append(
            f"idle time: {format_count(usage.settle_tokens)} tokens read after the last answer"
            f", {format_count(usage.typeahead_tokens)} while typing"
        )
    if (speculation := result.speculation) is not None and speculation.drafted:
        counts = f"{format_count(speculation.accepted)} of {format_count(speculation.drafted)}"
        lines.append(f"speculation: {format_speculation(speculation)}, {counts} drafted tokens")
    lines.append(f"cache: {format_counts_in(one_line(result.cache.reason))}")
    return lines


def format_verify(verify: "Verify") -> str:
    """Returns what `--verify` found."""
    outcome = "equal a" if verify.tokens_equal else "DIFFER from a"
    rounding = "" if verify.holds else ", more than rounding explains"
    cost = verify.kv_logit_diff
    quantised = "" if cost is None else f"; quantised KV moves them by at most {cost:.2g}"
    return (
        f"verify: tokens {outcome} from-scratch prefill of"
        f" {format_count(len(verify.prompt_ids))} tokens"
        f", logits differ by at most {verify.max_abs_logit_diff:.2g}{rounding}{quantised}"
    )


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


def format_model(info: "SessionInfo") -> list[tuple[str, str]]:
    """Returns rows on what was loaded."""
    return [
        ("model", f"{info.model} ({info.family}, {info.n_params / 1e6:,.1f} M parameters)"),
        ("backend", info.backend),
        ("weights", format_bytes(info.weight_bytes)),
        ("load", format_seconds(info.load_s)),
    ]


def format_stats(session: "Session") -> str:
    """Returns the `/stats` report: the model, the conversation and the last answer."""
    rows = [] if session.info is None else format_model(session.info)
    limit = "" if session.info is None else f" of {format_count(session.info.context_limit)}"
    rows += [
        ("turns", format_count(session.num_turns)),
        ("context", f"{format_count(session.context_used)}{limit} tokens"),
    ]
    report = format_table(rows)
    return report if session.last is None else f"{report}\n\n{format_timing(session.last)}"


def format_tree(branches: "list[Branch]", width: int = 80) -> str:
    """Returns the messages of all branches, one a line; `>` is where the person is.

    Args:
        branches: In the order in which they are drawn.
        width: Columns of a line; a message shows at least 10 of its own.
    """
    from mlxchat.cli.attachments import format_own_words

    lines = []
    for branch in branches:
        message = branch.node.message
        sign = ">" if branch.is_head else "*" if branch.is_on_path else " "
        who = "you" if message.role == "user" else "model"
        head = f"{sign} {branch.node.id:>3}  {'  ' * branch.depth}{who}: "
        lines.append(head + cut(format_own_words(message.content), max(width - len(head), 10)))
    return "\n".join(lines)


def format_cache(report: "CacheReport") -> str:
    """Returns what the KV cache holds: the live sequence, checkpoints and branches left behind."""
    rows = [
        ("live", f"{format_count(report.num_tokens)} tokens, {format_bytes(report.live_bytes)}"),
        ("layers", ", ".join(report.kinds)),
    ]
    if report.kv_bits is not None:
        quantised, total = report.num_quantised
        rows.append(("quantised", f"{quantised} of {total} layers in {report.kv_bits} bits"))
    rows += [
        ("checkpoint", f"at {format_count(position)}, {format_bytes(size)}")
        for position, size in report.marks
    ]
    rows += [
        ("branch", f"tokens {format_count(base)} to {format_count(end)}, {format_bytes(size)}")
        for base, end, size in report.stashes
    ]
    used = sum(size for *_, size in (*report.marks, *report.stashes))
    rows.append(("budget", f"{format_bytes(used)} of {format_bytes(report.budget_bytes)}"))
    return format_table(rows)
