"""What one conversation writes into the tables of the history.

Each function runs inside a transaction that `recorder.py` begins. A turn is written in steps (its
question, what is shown of its answer, its end), and `write_turn` does whatever is still missing: so
a step that failed is made good by the next.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlxchat import __version__
from mlxchat.chat.conversation import Conversation, Origin
from mlxchat.chat.history_file import clean, pack_ids
from mlxchat.chat.results import Alternatives, SessionInfo, TextDelta, TurnResult
from mlxchat.chat.template import Message

if TYPE_CHECKING:
    import sqlite3

    from mlxchat.chat.options import ChatOptions


@dataclass(slots=True)
class LiveTurn:
    """A turn from its question to its end.

    Attributes:
        question: Its text; None where a question of the tree is answered again.
        head: The node that it follows (or, answered again, the question).
        num_before: Nodes that the tree had; the worker adds others while this thread writes.
        system: The system prompt in force.
        options: The settings in force.
        info: The model, once it is loaded.
        begun: The answer that this one goes on with.
        nodes: What it added to the tree, once the answer stands.
        shown: What was shown of the answer.
        result: What came of it, if it ended well.
        error: Why it failed.
        is_over: It has ended, well or not.
        siblings: The turns of other answers that were given with it.
    """

    question: str | None
    head: int | None
    num_before: int
    system: str | None
    options: "ChatOptions"
    model: str
    info: SessionInfo | None = None
    begun: Message | None = None
    nodes: tuple[int, ...] = ()
    shown: list[TextDelta] = field(default_factory=list)
    result: TurnResult | None = None
    error: str | None = None
    is_over: bool = False
    siblings: tuple["LiveTurn", ...] = ()
    started_at: float = field(default_factory=time.time)
    row: int | None = None
    question_row: int | None = None
    answer_row: int | None = None
    num_written: int = 0

    def split(self, found: Alternatives, conversation: Conversation) -> None:
        """Becomes the turn of the first of several answers; the others have turns of their own."""
        places = [None if n is None else conversation.nodes[n].parent for n in found.nodes]
        first, *others = found.nodes
        if first is not None:
            question = places[0]
            self.nodes = (first,) if self.question is None else (question or 0, first)
        self.siblings = tuple(
            replace(
                self,
                question=None,
                head=place,
                num_before=node - 1,
                nodes=(node,),
                result=result,
                is_over=True,
                siblings=(),
                row=None,
                question_row=None,
                answer_row=None,
                num_written=0,
            )
            for node, place, result in zip(others, places[1:], found.results[1:], strict=True)
            if node is not None
        )

    def forget(self) -> None:
        """Nothing of it is stored (any more)."""
        self.row = self.question_row = self.answer_row = None
        self.num_written = 0


@dataclass(slots=True)
class Place:
    """Where a conversation lies in the database.

    Attributes:
        number: Its number; None before it is stored.
        rows: The number of each message by its number in the tree; 0 for one that shall not be
            stored, because the person deleted the conversation meanwhile.
        system: The system prompt that was stored last, and its number.
    """

    kind: str
    title: str | None = None
    number: int | None = None
    rows: dict[int, int] = field(default_factory=dict)
    system: tuple[str, int] | None = None

    def copy(self) -> "Place":
        """Returns a copy that does not change with this one."""
        place = copy.copy(self)
        place.rows = dict(self.rows)
        return place

    def row(self, node: int | None) -> int | None:
        """Returns the number of a message, None if it is not stored."""
        return self.rows.get(node) or None if node is not None else None


def write_turn(
    db: "sqlite3.Connection",
    place: Place,
    conversation: Conversation,
    turn: LiveTurn,
    num_earlier: int,
) -> None:
    """Writes what the database does not have of a turn yet.

    Args:
        db: The history, in a transaction.
        place: Where the conversation lies; it is brought up to date.
        conversation: The tree.
        turn: What is to be written.
        num_earlier: Nodes of the tree that belong to no turn that is being written.
    """
    if turn.row is None:
        write_tree(db, place, conversation, turn.options, turn.model, num_earlier)
        _write_start(db, place, turn)
    if turn.is_over:
        _write_end(db, place, conversation, turn)
    elif turn.num_written < len(turn.shown):
        new = turn.shown[turn.num_written :]
        rows = [(turn.answer_row, delta.kind, clean(delta.text)) for delta in new]
        db.executemany("INSERT INTO deltas (message, kind, text) VALUES (?, ?, ?)", rows)
        turn.num_written = len(turn.shown)


def write_tree(
    db: "sqlite3.Connection",
    place: Place,
    conversation: Conversation,
    options: "ChatOptions",
    model: str,
    num_nodes: int,
) -> None:
    """Makes sure that the conversation, its settings and its first `num_nodes` are stored."""
    now = time.time()
    if place.number is not None:
        sql = "SELECT 1 FROM conversations WHERE id = ?"
        if db.execute(sql, (place.number,)).fetchone() is None:  # deleted by the person meanwhile
            place.number, place.system = None, None
            place.rows = dict.fromkeys(conversation.nodes, 0)
    if place.number is None:
        place.number = db.execute(
            "INSERT INTO conversations (kind, title, activity, created_at, updated_at)"
            " VALUES (?, ?, 0, ?, ?)",
            (place.kind, place.title and clean(place.title), now, now),
        ).lastrowid
    for node in list(conversation.nodes.values()):
        if node.id <= num_nodes and node.id not in place.rows:
            place.rows[node.id] = _insert_message(
                db, place, place.row(node.parent), node.message, "kept", node.origin
            )
    system = _write_system(db, place, conversation.system)
    db.execute(
        "UPDATE conversations SET kind = ?, model = ?, head = ?, system = ?, template_now = ?,"
        " think = ?, keep_thinking = ?, updated_at = ?,"
        " activity = (SELECT max(activity) + 1 FROM conversations) WHERE id = ?",
        (
            place.kind,
            model,
            place.row(conversation.head),
            system,
            None if options.now is None else options.now.isoformat(),
            options.think,
            options.keep_thinking,
            now,
            place.number,
        ),
    )


def _write_system(db: "sqlite3.Connection", place: Place, text: str | None) -> int | None:
    """Stores a system prompt each time it changes: what was in force once is not lost."""
    if not text:
        return None
    if place.system is None or place.system[0] != text:
        row = _insert_message(db, place, None, Message("system", text), "kept")
        place.system = (text, row)
    return place.system[1]


def _insert_message(
    db: "sqlite3.Connection",
    place: Place,
    parent: int | None,
    message: Message,
    state: str,
    origin: Origin | None = None,
) -> int:
    values = {
        "conversation": place.number,
        "parent": parent,
        "role": message.role,
        "state": state,
        "created_at": time.time(),
    } | _texts(message, origin)
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    cursor = db.execute(f"INSERT INTO messages ({names}) VALUES ({marks})", values)  # noqa: S608
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _texts(message: Message, origin: Origin | None) -> dict[str, Any]:
    origin = origin or Origin()
    return {
        "content": clean(message.content),
        "reasoning": None if message.reasoning is None else clean(message.reasoning),
        "inline": None if message.inline is None else clean(message.inline),
        "content_ids": pack_ids(message.content_ids),
        "reasoning_ids": pack_ids(message.reasoning_ids),
        "fingerprint": origin.fingerprint,
        "stop_reason": origin.stop_reason,
        "generated_ids": pack_ids(origin.token_ids or None),
    }


def _write_start(db: "sqlite3.Connection", place: Place, turn: LiveTurn) -> None:
    """Stores the question, an empty answer that is marked partial, and the turn."""
    parent = place.row(turn.head)
    if turn.question is None:
        turn.question_row = parent
    else:
        question = Message("user", turn.question)
        turn.question_row = _insert_message(db, place, parent, question, "kept")
    answer = turn.begun or Message("assistant", "")
    turn.answer_row = _insert_message(db, place, turn.question_row, answer, "partial")
    turn.row = db.execute(
        "INSERT INTO turns (conversation, question, answer, system, state, model, settings,"
        " started_at) VALUES (?, ?, ?, ?, 'running', ?, ?, ?)",
        (
            place.number,
            turn.question_row,
            turn.answer_row,
            _write_system(db, place, turn.system),
            turn.model,
            json.dumps(_settings(turn.options)),
            turn.started_at,
        ),
    ).lastrowid
    _set_head(db, place, turn.answer_row)


def _settings(options: "ChatOptions") -> dict[str, Any]:
    """Returns what was set of the sampling and the rest; what is not set follows the model."""
    names = ("max_tokens", "stop", "max_context", "think", "think_budget", "keep_thinking")
    ways = ("adapter", "kv_bits", "speculate", "draft_model")
    given = {name: getattr(options, name) for name in (*names, *ways)}
    sampling = {
        name: value for name, value in asdict(options.sampling).items() if value is not None
    }
    given["steering"] = [[steer.name, steer.coeff] for steer in options.steering]
    return {"sampling": sampling} | {name: value for name, value in given.items() if value}


def _describe_place(info: SessionInfo | None) -> dict[str, str]:
    """Returns what a turn's figures were measured on: versions, system, backend."""
    system = os.uname()
    mlx = getattr(sys.modules.get("mlx.core"), "__version__", "")
    place = {"mlxchat": __version__, "mlx": mlx, "system": f"{system.sysname} {system.machine}"}
    return place | {"backend": info.backend if info else ""}


def _set_head(db: "sqlite3.Connection", place: Place, row: int | None) -> None:
    db.execute("UPDATE conversations SET head = ? WHERE id = ?", (row, place.number))


def _write_end(
    db: "sqlite3.Connection", place: Place, conversation: Conversation, turn: LiveTurn
) -> None:
    """Stores the whole answer with its figures, or that there is none."""
    now = time.time()
    db.execute("DELETE FROM deltas WHERE message = ?", (turn.answer_row,))
    if turn.nodes:
        state = "done"
        answer = conversation.nodes[turn.nodes[-1]]
        _take_nodes(place, turn)
        first = conversation.nodes[turn.nodes[0]]  # a queued turn learns late where it goes
        values = (place.row(first.parent), place.row(first.id))
        db.execute("UPDATE messages SET parent = ? WHERE id = ?", values)
        _update_answer(db, turn, answer.message, "kept", answer.origin)
        _set_head(db, place, place.row(answer.id))
    else:
        state = "failed" if turn.error else "dropped"
        if not turn.shown and _is_only_turn(db, place, turn):
            db.execute("DELETE FROM conversations WHERE id = ?", (place.number,))
            place.number, place.system = None, None
            return
        said = {kind: _join(turn.shown, kind) for kind in ("answer", "reasoning")}
        begun = turn.begun or Message("assistant", "")
        reasoning = (begun.reasoning or "") + said["reasoning"]
        shown = Message("assistant", begun.content + said["answer"], reasoning or None)
        _update_answer(db, turn, shown, "dropped")
        if turn.question is not None:
            sql = "UPDATE messages SET state = 'dropped' WHERE id = ?"
            db.execute(sql, (turn.question_row,))
        _set_head(db, place, place.row(conversation.head))
    _update_turn(db, turn, state, now)
    db.execute(
        "UPDATE conversations SET updated_at = ?, model = coalesce(?, model) WHERE id = ?",
        (now, turn.info.source if turn.info else None, place.number),
    )


def _take_nodes(place: Place, turn: LiveTurn) -> None:
    rows = [turn.question_row, turn.answer_row][-len(turn.nodes) :]
    place.rows.update({node: row or 0 for node, row in zip(turn.nodes, rows, strict=True)})


def _is_only_turn(db: "sqlite3.Connection", place: Place, turn: LiveTurn) -> bool:
    """Whether nothing was ever said in the conversation besides this turn's question."""
    sql = "SELECT count(*) FROM messages WHERE conversation = ? AND role != 'system'"
    num_messages: int = db.execute(sql, (place.number,)).fetchone()[0]
    return num_messages == 2


def _update_answer(
    db: "sqlite3.Connection",
    turn: LiveTurn,
    message: Message,
    state: str,
    origin: Origin | None = None,
) -> None:
    texts = _texts(message, origin)
    changes = ", ".join(f"{name} = :{name}" for name in texts)
    db.execute(
        f"UPDATE messages SET {changes}, state = :state, is_indexed = 0 WHERE id = :id",  # noqa: S608
        texts | {"state": state, "id": turn.answer_row},
    )


def _update_turn(db: "sqlite3.Connection", turn: LiveTurn, state: str, now: float) -> None:
    result, tokens = None, None
    if turn.result is not None:
        # What the answer's own row holds is not stored twice; the names keep their order.
        whole = turn.result.to_json()
        result = json.dumps(whole | {"text": None, "reasoning": None, "tokens": None})
        tokens = pack_ids(turn.result.tokens)
    info = turn.info
    db.execute(
        "UPDATE turns SET state = ?, model = coalesce(?, model), model_commit = ?, fingerprint = ?,"
        " settings = ?, result = ?, tokens = ?, error = ?, ended_at = ? WHERE id = ?",
        (
            state,
            info.source if info else None,
            info.commit if info else None,
            info.fingerprint if info else None,
            json.dumps(_settings(turn.options) | {"on": _describe_place(info)}),
            result,
            tokens,
            turn.error and clean(turn.error),
            now,
            turn.row,
        ),
    )


def _join(deltas: Iterable[TextDelta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)
