"""A stored conversation as a file: Markdown, JSON, JSON lines, one self-contained HTML page.

The JSON form is a list of messages as chat APIs write them (`role`, `content`), each with its place
in the tree, so it can be read by other programs and imported again. Text that a terminal or a
browser would obey is made harmless by the caller (`clean`) and by escaping.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Literal

from mlxchat.chat.history_record import MessageRecord, Record, TurnRecord
from mlxchat.counts import format_ttft

Format = Literal["md", "json", "jsonl", "html"]
FORMATS: tuple[Format, ...] = ("md", "json", "jsonl", "html")
Clean = Callable[[str], str]


def format_time(at: float) -> str:
    """Returns a time of the history on this machine's clock: `2026-11-21 14:03`."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def format_export(records: list[Record], form: Format, clean: Clean) -> str:
    """Returns conversations as the text of a file.

    Args:
        records: What to write; a `json` file of one conversation holds it alone, not in a list.
        form: The file's format.
        clean: Takes away what a terminal would obey.
    """
    if form == "md":
        return "\n\n---\n\n".join(_markdown(record, clean) for record in records) + "\n"
    if form == "html":
        return _html(records, clean)
    if form == "jsonl":
        return "".join(json.dumps(to_json(record)) + "\n" for record in records)
    objects = [to_json(record) for record in records]
    return json.dumps(objects[0] if len(objects) == 1 else objects, indent=1) + "\n"


def to_json(record: Record) -> dict[str, Any]:
    """Returns all that is stored of a conversation; times are ISO 8601 with this clock's offset."""
    summary = record.summary
    system = [{"role": "system", "content": record.system}] if record.system else []
    return {
        "id": summary.id,
        "title": summary.title,
        "kind": summary.kind,
        "model": summary.model,
        "created_at": _iso(summary.created_at),
        "updated_at": _iso(summary.updated_at),
        "think": record.think,
        "keep_thinking": record.keep_thinking,
        "head": record.head,
        "messages": [*system, *(_message_json(message) for message in record.messages)],
        "turns": [_turn_json(turn) for turn in record.turns],
    }


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at).astimezone().isoformat()


def _message_json(message: MessageRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        fields["reasoning_content"] = message.reasoning
    return fields | {
        "id": message.id,
        "parent": message.parent,
        "state": message.state,
        "created_at": _iso(message.created_at),
    }


def _turn_json(turn: TurnRecord) -> dict[str, Any]:
    names = ("id", "question", "answer", "state", "model", "commit", "fingerprint", "settings")
    times = {"started_at": _iso(turn.started_at), "ended_at": _iso(turn.ended_at)}
    fields = {name: getattr(turn, name) for name in names}
    return fields | times | {"error": turn.error, "result": turn.result}


# -- for people ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A message as people read it.

    Attributes:
        is_aside: It is on another branch than the head.
        note: What is to be said of it: partial, stopped, failed.
        figures: Time and rate of the answer.
    """

    message: MessageRecord
    is_aside: bool
    note: str
    figures: str


def transcript(record: Record) -> Iterator[Shown]:
    """Yields the messages as people read them: at each fork the other branches come first."""
    turns = {turn.answer: turn for turn in record.turns}
    path = {message.id for message in record.path()}
    children: dict[int | None, list[MessageRecord]] = {}
    known = {message.id for message in record.messages}
    for message in record.messages:
        parent = message.parent if message.parent in known else None
        children.setdefault(parent, []).append(message)
    stack = _in_order(children.get(None, []), path)
    while stack:
        message = stack.pop()
        stack += _in_order(children.get(message.id, []), path)
        if message.is_empty and message.state != "partial":
            continue
        turn = turns.get(message.id)
        is_aside = message.id not in path
        yield Shown(message, is_aside, _note(message, turn), _figures(turn))


def _in_order(messages: list[MessageRecord], path: set[int]) -> list[MessageRecord]:
    """Returns the children of a message so that the one on the path is popped last."""
    return sorted(messages, key=lambda message: (message.id not in path, -message.id))


def _note(message: MessageRecord, turn: TurnRecord | None) -> str:
    if message.state == "partial":
        return (
            "partial: the program ended before the answer did"
            if message.content
            else ("partial: the program ended before there was an answer")
        )
    if message.state == "dropped":
        if turn is not None and turn.error:
            return f"not part of the conversation: {turn.error}"
        return "not part of the conversation: stopped before there was an answer"
    reason = turn.result["stop_reason"] if turn is not None and turn.result else ""
    notes = {
        "user_cancelled": "stopped",
        "token_limit": "stopped at the token limit",
        "context_full": "the context was full",
    }
    return notes.get(reason, "")


def _figures(turn: TurnRecord | None) -> str:
    if turn is None or turn.result is None:
        return ""
    usage, timing = turn.result["usage"], turn.result["timing"]
    parts = [f"{usage['completion_tokens']} tokens", f"ttft {format_ttft(timing['ttft_s'])}"]
    if timing["decode_tok_per_s"] is not None:
        parts.append(f"{timing['decode_tok_per_s']:.1f} tok/s")
    parts.append(f"reused {usage['cached_tokens']}, read {usage['prefill_tokens']}")
    return " · ".join(parts)


def who(message: MessageRecord) -> str:
    """Returns the speaker's name."""
    return "You" if message.role == "user" else "Model"


def headline(record: Record) -> str:
    """Returns one line on where and when a conversation took place."""
    summary = record.summary
    return f"conversation {summary.id} · {summary.model or '?'} · {format_time(summary.created_at)}"


def _title(record: Record) -> str:
    return " ".join(record.summary.title.split()) or f"Conversation {record.summary.id}"


def _markdown(record: Record, clean: Clean) -> str:
    blocks = [f"# {clean(_title(record))}", clean(headline(record))]
    if record.system:
        blocks += ["## System", clean(record.system)]
    for shown in transcript(record):
        message = shown.message
        aside = " (another branch)" if shown.is_aside else ""
        blocks.append(f"## {who(message)}{aside}")
        if message.reasoning:
            lines = clean(message.reasoning).strip().split("\n")
            blocks.append("\n".join(["> *thinking*", ">", *(f"> {line}" for line in lines)]))
        if message.content:
            blocks.append(clean(message.content).strip("\n"))
        notes = [note for note in (shown.note, shown.figures) if note]
        if notes:
            blocks.append(f"*{clean(' · '.join(notes))}*")
    return "\n\n".join(blocks)


_STYLE = """
:root { color-scheme: light dark; --dim: #767676; --line: #8884; --you: #0a6ebd22; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
header, .figures, .who, summary { color: var(--dim); font-size: .85rem; }
article { border-top: 1px solid var(--line); padding: .6rem 0; }
.user .text { background: var(--you); border-radius: .5rem; padding: .5rem .8rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.aside { opacity: .65; margin-left: 2rem; }
"""


def _html(records: Iterable[Record], clean: Clean) -> str:
    records = list(records)
    title = _title(records[0]) if len(records) == 1 else "Conversations"
    sections = "\n".join(_html_section(record, clean) for record in records)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(clean(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{sections}\n</body>\n</html>\n"
    )


def _html_section(record: Record, clean: Clean) -> str:
    def safe(text: str) -> str:
        return escape(clean(text))

    parts = [f"<h1>{safe(_title(record))}</h1>", f"<header>{safe(headline(record))}</header>"]
    if record.system:
        text = safe(record.system)
        parts.append(f'<details><summary>System</summary><div class="text">{text}</div></details>')
    for shown in transcript(record):
        message = shown.message
        kind = f"{message.role} aside" if shown.is_aside else message.role
        aside = " · another branch" if shown.is_aside else ""
        parts.append(f'<article class="{kind}"><div class="who">{who(message)}{aside}</div>')
        if message.reasoning:
            parts.append(
                "<details><summary>Thinking</summary>"
                f'<div class="text">{safe(message.reasoning.strip())}</div></details>'
            )
        parts.append(f'<div class="text">{safe(message.content.strip())}</div>')
        notes = " · ".join(note for note in (shown.note, shown.figures) if note)
        if notes:
            parts.append(f'<div class="figures">{safe(notes)}</div>')
        parts.append("</article>")
    return "\n".join(parts)
