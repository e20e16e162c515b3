"""Stored conversations to text for people; pure functions, nothing here writes."""

from typing import TYPE_CHECKING

from mlxchat.chat.export import Shown, format_time, headline, transcript, who
from mlxchat.chat.history_search import CLOSE, OPEN
from mlxchat.cli.render import (
    cut,
    format_bytes,
    format_count,
    format_table,
    one_line,
    sanitize,
    short_model,
)
from mlxchat.cli.wrap import text_width, wrap

if TYPE_CHECKING:
    from mlxchat.chat.history import Stats
    from mlxchat.chat.history_record import Record, Restored, Summary
    from mlxchat.chat.history_search import Hit

_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
TITLE_CHARS = 60
# Of the last question of a conversation that goes on: its end is what the person wrote.
LAST_QUESTION_LINES = 10


def format_summaries(summaries: "list[Summary]") -> str:
    """Returns a table of conversations: number, time of the last turn, questions, model, title."""
    rows = [("id", "last turn", "turns", "model", "title")]
    for summary in summaries:
        title = cut(one_line(summary.title), TITLE_CHARS) + (" (partial)" * summary.is_partial)
        model = short_model(summary.model or "?")
        when = format_time(summary.updated_at)
        rows.append((str(summary.id), when, str(summary.num_questions), cut(model, 24), title))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:<{widths[3]}}  {row[4]}"
        for row in rows
    )


def format_record(record: "Record", *, thinking: bool, is_styled: bool) -> str:
    """Returns a conversation to read.

    Args:
        record: The conversation.
        thinking: Show the reasoning too.
        is_styled: The names of the speakers are bold, the rest that nobody said is dimmed.
    """
    dim, bold, plain = (_DIM, _BOLD, _PLAIN) if is_styled else ("", "", "")
    blocks = [
        f"{bold}{one_line(record.summary.title)}{plain}\n{dim}{one_line(headline(record))}{plain}"
    ]
    if record.system:
        blocks.append(f"{bold}System{plain}\n{sanitize(record.system).strip()}")
    for shown in transcript(record):
        blocks.append(_format_shown(shown, thinking=thinking, dim=dim, bold=bold, plain=plain))
    return "\n\n".join(blocks)


def _format_shown(shown: Shown, *, thinking: bool, dim: str, bold: str, plain: str) -> str:
    message = shown.message
    aside = f" {dim}(another branch){plain}" if shown.is_aside else ""
    lines = [f"{bold}{who(message)}{plain}{aside}"]
    if message.reasoning and thinking:
        lines.append(f"{dim}{sanitize(message.reasoning).strip()}{plain}")
    elif message.reasoning:
        count = format_count(len(message.reasoning))
        lines.append(f"{dim}(thought in {count} characters; --thinking shows them){plain}")
    if message.content:
        lines.append(sanitize(message.content).strip("\n"))
    notes = " · ".join(note for note in (shown.note, shown.figures) if note)
    if notes:
        lines.append(f"{dim}({one_line(notes)}){plain}")
    return "\n".join(lines)


def format_hits(hits: "list[Hit]", *, is_styled: bool) -> str:
    """Returns where words were found, each with a snippet."""
    opener, closer = (_BOLD, _PLAIN) if is_styled else ("", "")
    lines = []
    for hit in hits:
        title = cut(one_line(hit.title), TITLE_CHARS)
        snippet = one_line(hit.snippet).replace(OPEN, opener).replace(CLOSE, closer)
        name = {"user": "you", "assistant": "model"}.get(hit.role, hit.role)
        lines.append(f"{hit.conversation}  {format_time(hit.created_at)}  {title}")
        lines.append(f"    {name}: {snippet}")
    return "\n".join(lines)


def format_history_stats(stats: "Stats") -> str:
    """Returns what the history holds."""
    rows = [
        ("conversations", format_count(stats.num_conversations)),
        ("messages", format_count(stats.num_messages)),
        ("turns", format_count(stats.num_turns)),
        ("prompt tokens", format_count(stats.prompt_tokens)),
        ("  of them reused", format_count(stats.cached_tokens)),
        ("answer tokens", format_count(stats.completion_tokens)),
        ("file", format_bytes(stats.file_bytes)),
    ]
    if stats.oldest_at is not None and stats.newest_at is not None:
        rows.append(("from", format_time(stats.oldest_at)))
        rows.append(("to", format_time(stats.newest_at)))
    by_use = sorted(stats.turns_by_model.items(), key=lambda item: -item[1])
    rows += [("turns with", f"{format_count(count)}  {model}") for model, count in by_use]
    return format_table(rows)


def format_restored(
    restored: "Restored", *, shows_last: bool = True, width: int | None = None
) -> str:
    """Returns what is said when a conversation goes on: which one, where, what comes to be read.

    Args:
        restored: The conversation.
        shows_last: Its last question and answer too.
        width: Columns of the terminal; None breaks no lines.
    """
    summary, conversation = restored.record.summary, restored.conversation
    path = conversation.path()
    lines = []
    if shows_last:
        for node in path[-2:]:
            name = "You" if node.message.role == "user" else "Model"
            said = f"{name}: {sanitize(node.message.content).strip()}"
            said_lines = said.split("\n") if width is None else _break_lines(said, width)
            num_left = len(said_lines) - LAST_QUESTION_LINES
            if node.message.role == "user" and num_left > 0:  # what is attached stands first
                said_lines[:num_left] = [f"You: ... {num_left} lines"]
            lines += said_lines
    if conversation.head in restored.partial:
        lines.append("(this answer is partial: the program ended before it did)")
    num_turns = len(conversation.questions())
    turns = f"{num_turns} {'turn' if num_turns == 1 else 'turns'}"
    lines.append(
        f"Conversation {summary.id} goes on after {turns}: {cut(one_line(summary.title), 60)}"
    )
    if restored.unanswered is not None:
        question = conversation.nodes[restored.unanswered].message.content
        lines.append(
            f"Your last message has no answer: {cut(one_line(question), 60)}\n"
            f"/goto {restored.unanswered}, then /retry answers it."
        )
    return "\n".join(lines)


def _break_lines(text: str, width: int) -> list[str]:
    """Breaks a text between words; code and lists keep their blanks at the beginning of a line."""
    lines = []
    for line in text.split("\n"):
        if text_width(line) <= width:
            lines.append(line)
        else:
            lines += ["".join(part for part, _ in row) for row in wrap([(line, "")], width)]
    return lines
