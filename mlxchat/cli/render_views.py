"""What the slash commands that tell show, as text; pure functions, nothing here writes."""

from typing import TYPE_CHECKING

from mlxchat.cli.render import (
    cut,
    fill_rows,
    format_bar,
    format_bytes,
    format_count,
    format_seconds,
    format_share,
    format_table,
    one_line,
)
from mlxchat.cli.render_turn import format_timing

if TYPE_CHECKING:
    from mlxchat.chat.conversation import Branch
    from mlxchat.chat.results import SessionInfo, TurnResult
    from mlxchat.chat.session import Session
    from mlxchat.chat.views import ContextView, TokenPiece
    from mlxchat.engine.prefix_cache import CacheReport

_BAR, _SHORT_BAR, _NARROW = 20, 8, 60
# Older turns than these are shown as one row; more ids than these are counted only.
_MAX_TURNS, _MAX_PIECES = 20, 400


def format_context(view: "ContextView", columns: int = 80) -> str:
    """Returns a table with a bar for each part of the context, the free rest last."""
    from mlxchat.cli.attachments import format_own_words

    bar = _BAR if columns >= _NARROW else _SHORT_BAR
    rows: list[tuple[str, int, str]] = []
    turns = [part for part in view.parts if part.turn is not None]
    early = turns[: max(len(turns) - _MAX_TURNS, 0)]
    for part in view.parts:
        if part.turn is None:
            rows.append(("system", part.num_tokens, one_line(part.text)))
    if early:
        size = sum(part.num_tokens for part in early)
        rows.append((f"turns {early[0].turn} to {early[-1].turn}", size, ""))
    late = turns[len(early) :]
    rows += [(f"turn {p.turn}", p.num_tokens, format_own_words(p.text)) for p in late]
    used = sum(part.num_tokens for part in view.parts)
    rows.append(("free", max(view.limit - used, 0), ""))
    width = max(len(name) for name, *_ in rows)
    lines = []
    for name, size, text in rows:
        line = f"{name:<{width}}  {format_count(size):>9}  {format_bar(size / view.limit, bar)}  "
        lines.append((line + cut(text, max(columns - len(line), 1))).rstrip())
    if view.num_left_out:
        which = "turn 1 is" if view.num_left_out == 1 else f"turns 1 to {view.num_left_out} are"
        lines.append(f"{which} left out of the prompt")
    share = format_share(used / view.limit)
    lines.append(f"{format_count(used)} of {format_count(view.limit)} tokens are used ({share})")
    return "\n".join(lines)


def format_phases(result: "TurnResult", columns: int = 80) -> str:
    """Returns the phases of a turn, each with its share of the time as a bar where that fits."""
    timing, usage = result.timing, result.usage
    before = timing.template_s + timing.restore_s + timing.prefill_s
    phases = [
        ("template", timing.template_s, f"{format_count(usage.prompt_tokens)} tokens"),
        ("restore", timing.restore_s, f"{format_count(usage.cached_tokens)} reused"),
        ("prefill", timing.prefill_s, f"{format_count(usage.prefill_tokens)} read"),
        ("first token", max(timing.ttft_s - before, 0.0), ""),
        ("decode", timing.decode_s, f"{format_count(usage.completion_tokens)} tokens"),
    ]
    rest = timing.total_s - sum(seconds for _, seconds, _ in phases)
    phases.append(("rest", max(rest, 0.0), ""))
    total = sum(seconds for _, seconds, _ in phases) or 1.0
    lines = []
    for name, seconds, note in phases:
        bar = f"  {format_bar(seconds / total, _BAR)}" if columns >= _NARROW else ""
        lines.append(f"{name:<11}  {format_seconds(seconds):>10}{bar}  {note}".rstrip())
    return "\n".join([*lines, f"{'total':<11}  {format_seconds(timing.total_s):>10}"])


def format_tokens(pieces: "list[TokenPiece]", width: int) -> str:
    """Returns ids with their texts in running rows; special ones are marked with a star."""
    cells = []
    for piece in pieces[:_MAX_PIECES]:
        text = piece.text if piece.is_special else repr(piece.text)
        cells.append(f"{one_line(text)}{'*' if piece.is_special else ''} {piece.token_id}")
    rows = fill_rows(cells, "  ", width)
    left = len(pieces) - _MAX_PIECES
    rows += [f"… and {format_count(left)} more"] if left > 0 else []
    marks = "; * marks special ones" if any(piece.is_special for piece in pieces) else ""
    rows.append(f"{format_count(len(pieces))} tokens{marks}")
    return "\n".join(row for row in rows if row)


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
