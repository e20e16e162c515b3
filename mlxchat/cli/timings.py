"""`mlxchat timings`: where the time of past turns went. Starts without MLX."""

import os
import shutil
import sys
from typing import TYPE_CHECKING

import click

from mlxchat.cli.history import opened
from mlxchat.cli.resume import complete_conversation
from mlxchat.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from mlxchat.chat.history import History
    from mlxchat.cli.render_timings import Told


@click.command()
@click.argument(
    "number", metavar="[CONVERSATION]", required=False, shell_complete=complete_conversation
)
@click.option("--all", "takes_all", is_flag=True, help="All conversations.")
@click.option(
    "--html", "html_file", metavar="FILE", help="Write one page with charts; it fetches nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def timings(number: str | None, takes_all: bool, html_file: str | None, as_json: bool) -> None:
    """Show where the time of past turns went; without CONVERSATION of the newest."""
    from mlxchat.bench.machine import describe_machine
    from mlxchat.bench.report import format_machine
    from mlxchat.cli.render_timings import format_json, format_timings, make_timings_page

    if takes_all and number is not None:
        raise UsageError("--all and a CONVERSATION exclude each other; give one of them")
    with opened() as history:
        told = read_told(history, number, takes_all=takes_all)
    if html_file is not None:
        from mlxchat.cli.page import write_page

        write_page(html_file, make_timings_page(told, format_machine(describe_machine())))
        click.echo(f"Wrote {html_file}.", err=True)
    if as_json:
        click.echo(format_json(told, describe_machine()))
    elif html_file is None:
        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else 80
        is_coloured = is_terminal and not os.environ.get("NO_COLOR")
        click.echo(format_timings(told, width=min(width, 120), is_coloured=is_coloured))


def read_told(history: "History", number: str | None, *, takes_all: bool) -> "list[Told]":
    """Reads the conversations that are asked for, those without figures left out.

    Raises:
        HistoryError: There are none with figures.
    """
    from mlxchat.chat.timings import numbers_without_figures, read_figures
    from mlxchat.cli.render_timings import Told

    if takes_all:
        ids = [summary.id for summary in history.summaries()][::-1]
    else:
        ids = [history.newest() if number is None else history.find(number)]
    told = []
    for id_ in ids:
        record = history.record(id_)
        turns = tuple(read_figures(record))
        if turns:
            without = numbers_without_figures(record)
            told.append(Told(id_, record.summary.title, turns, without))
    if not told:
        where = "the history" if takes_all else f"conversation {ids[0]}"
        raise HistoryError(
            f"no turn in {where} has timings: it was imported, stripped, or no answer ended;"
            " `mlxchat history list` shows the others"
        )
    return told
