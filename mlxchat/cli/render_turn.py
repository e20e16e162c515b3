"""What is said of an answer: the line under it, `--timing`, `--verify`; pure functions."""

from typing import TYPE_CHECKING

from mlxchat.cli.render import (
    format_bytes,
    format_count,
    format_counts_in,
    format_rate,
    format_seconds,
    format_share,
    format_tokens,
    one_line,
)
from mlxchat.counts import format_ttft

if TYPE_CHECKING:
    from mlxchat.chat.results import Speculation, TurnResult, Verify

_WORTH_TELLING_S = 0.001  # that speculation saved or cost; less would read as 0.000 s
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
    speculation = result.speculation
    if speculation is not None and abs(speculation.saved_s) >= _WORTH_TELLING_S:
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
