"""`mlxchat bench --replay`: the first token of each turn of a stored conversation, once more."""

import contextlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlxchat.bench.machine import describe_machine
from mlxchat.bench.report import format_machine
from mlxchat.bench.tables import make_table, wrap_lines
from mlxchat.chat.results import LoadProgress, Notice, ReplayedTurn, Way
from mlxchat.cli.bench_run import interruptible, table_width
from mlxchat.cli.failures import INTERRUPTED
from mlxchat.cli.options import read_request
from mlxchat.cli.progress import PhaseClock
from mlxchat.cli.render import format_count, format_progress
from mlxchat.cli.screen import Screen
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.session import Session

REPETITIONS = 3


def replay_conversation(reference: str, params: dict[str, Any]) -> int:
    """Replays a conversation and prints a table, or JSON.

    Raises:
        UsageError: Options that have no meaning here.
        HistoryError: There is no such conversation.
    """
    from mlxchat.chat.history import History

    if params["form"] not in ("md", "json"):
        raise UsageError(f"--replay knows md and json, not {params['form']}; choose one of them")
    with contextlib.closing(History()) as history:
        restored = history.restore(history.find(reference))
    if not restored.conversation.questions():
        raise UsageError(f"nothing was said in conversation {reference}; choose another")
    given = {"model": params["model"], "adapter": params["adapter"], "no_history": True}
    request = read_request(given).go_on_with(restored)
    turns: list[ReplayedTurn] = []
    with contextlib.closing(request.open(idle_work=False)) as session:
        screen = Screen(sys.stdout, sys.stderr)
        repetitions = params["repetitions"] or REPETITIONS
        is_stopped = interruptible(lambda: _follow(session, repetitions, turns, screen), screen)
        if turns:
            _tell(session, reference, turns, repetitions, params["form"])
    if is_stopped and not turns:
        click.echo("Stopped before anything was measured.", err=True)
        return INTERRUPTED
    if is_stopped:
        click.echo("Stopped; the turns above are what was measured by then.", err=True)
        return INTERRUPTED
    return 0


def _follow(
    session: "Session", repetitions: int, turns: list[ReplayedTurn], screen: Screen
) -> None:
    num_turns, clock = session.num_turns, PhaseClock()
    job = session.replay(repetitions)
    try:
        for event in job:
            if isinstance(event, LoadProgress):
                screen.progress(format_progress(event, clock.elapsed_s(event)))
                continue
            if isinstance(event, ReplayedTurn):
                turns.append(event)
            elif isinstance(event, Notice):
                screen.note(event.text)
            screen.progress(f"turn {len(turns) + 1} of {num_turns}")
    finally:
        job.cancel()
    job.result()


def _tell(
    session: "Session",
    reference: str,
    turns: list[ReplayedTurn],
    repetitions: int,
    form: str,
) -> None:
    info, machine = session.info, describe_machine()
    model = info.model if info is not None else "unknown model"
    if form == "json":
        data = {
            "conversation": reference,
            "model": model,
            "machine": machine,
            "repetitions": repetitions,
            "turns": [asdict(turn) for turn in turns],
        }
        click.echo(json.dumps(data, indent=2))
        return
    backend = "" if info is None else info.backend
    click.echo(f"Conversation {reference} with {model}{f' on {backend}' if backend else ''}\n")
    click.echo(format_replay(turns, machine, repetitions, table_width()), nl=False)


def format_replay(
    turns: list[ReplayedTurn],
    machine: dict[str, Any],
    repetitions: int,
    width: int | None = None,
) -> str:
    """Returns how long the first token of each turn took in each way, and what was read for it.

    Args:
        turns: What was measured.
        machine: From `describe_machine`.
        repetitions: Of each turn and way.
        width: Of the terminal; None is a file.
    """
    rows = []
    ways: tuple[Way, ...] = ("cold", "warm", "disk")
    for turn in turns:
        cells = [str(turn.number), format_count(turn.num_prompt)]
        for way in ways:
            found = turn.ways.get(way)
            cells += ["-", "-"] if found is None else [f"{1e3 * found.seconds:,.1f}"]
            if found is not None:
                cells.append(str(found.num_read))
        rows.append(tuple(cells))
    header = ("turn", "prompt", "cold ms", "read", "warm ms", "read", "disk ms", "read")
    tables = [make_table(header, rows, 0, width)] if rows else []
    lines = []
    later = [turn for turn in turns if "warm" in turn.ways]
    if later:
        sums = {w: sum(turn.ways[w].seconds for turn in later) for w in ways}
        lines.append(
            f"{_span(later)}: warm {sums['warm'] / sums['cold']:.3f} of cold,"
            f" from disk {sums['disk'] / sums['cold']:.3f} of cold"
        )
    lines += format_machine(machine)
    lines.append(f"settings: {repetitions} repetitions, medians, after a warm-up; one token each")
    return "\n".join([*tables, *wrap_lines(lines, width)]) + "\n"


def _span(turns: list[ReplayedTurn]) -> str:
    first, last = turns[0].number, turns[-1].number
    return f"turn {first}" if first == last else f"turns {first} to {last}"
