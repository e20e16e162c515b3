"""`mlxchat history`: what was said, found again. Starts without MLX."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.groups import Group
from mlxchat.cli.resume import complete_conversation
from mlxchat.cli.screen import show_table
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.history import History

# What an export cannot be, though a file's name may promise it.
_OTHER_FORMATS = {"csv", "docx", "epub", "htm", "odt", "pdf", "rtf", "tex", "xml", "yaml", "yml"}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def opened() -> "Iterator[History]":
    """Opens the history for one command."""
    from mlxchat.chat.history import History

    with contextlib.closing(History()) as history:
        yield history


def _is_styled() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


_one_id = click.argument(
    "number", metavar="[ID]", required=False, shell_complete=complete_conversation
)
_ids = click.argument("numbers", metavar="ID...", nargs=-1, shell_complete=complete_conversation)


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def history(context: click.Context) -> None:
    """List, search, show, export and delete conversations."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@history.command("list")
@click.option("-n", "limit", type=click.IntRange(1), default=20, metavar="N", help="At most N.")
@click.option("--all", "shows_all", is_flag=True, help="All of them.")
@_json_option
def list_(limit: int, shows_all: bool, as_json: bool) -> None:
    """List conversations, the one with the newest turn first."""
    from mlxchat.chat.history import open_history
    from mlxchat.cli.render_history import format_summaries

    found = open_history()
    summaries = []
    if found is not None:
        with contextlib.closing(found):
            summaries = found.summaries(None if shows_all else limit)
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps([asdict(summary) for summary in summaries], indent=1))
    elif summaries:
        show_table(format_summaries(summaries), sys.stdout)
    else:
        click.echo("There is no conversation yet; `mlxchat chat` begins one.", err=True)


@history.command()
@_one_id
@click.option("--thinking", is_flag=True, help="Show the reasoning too.")
@_json_option
def show(number: str | None, thinking: bool, as_json: bool) -> None:
    """Show a conversation; without ID the one with the newest turn."""
    from mlxchat.chat.export import to_json
    from mlxchat.cli.render_history import format_record

    with opened() as found:
        record = found.record(found.newest() if number is None else found.find(number))
    if as_json:
        click.echo(json.dumps(to_json(record), indent=1))
    else:
        click.echo(format_record(record, thinking=thinking, is_styled=_is_styled()))


@history.command()
@click.argument("words", metavar="WORDS...", nargs=-1, required=True)
@click.option("-n", "limit", type=click.IntRange(1), default=20, metavar="N", help="At most N.")
@_json_option
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find messages in which all WORDS stand; a quoted group is a phrase."""
    from dataclasses import asdict

    from mlxchat.chat import history_search
    from mlxchat.cli.render_history import format_hits

    if not any(word.strip() for word in words):
        raise UsageError("there is no word to search for; give one")
    with opened() as history:
        found = history_search.search(history, words, limit)
    if found.notice:
        click.echo(found.notice, err=True)
    if as_json:
        hits = [asdict(hit) for hit in found.hits]
        for hit in hits:
            for mark in (history_search.OPEN, history_search.CLOSE):
                hit["snippet"] = hit["snippet"].replace(mark, "")
        click.echo(json.dumps(hits, indent=1))
    elif found.hits:
        show_table(format_hits(found.hits, is_styled=_is_styled()), sys.stdout)
    else:
        click.echo("Nothing was found.", err=True)


@history.command()
@_one_id
@click.option("--all", "takes_all", is_flag=True, help="All conversations.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "json", "jsonl", "html"]),
    help="The format; else the end of FILE's name says it, else it is md.",
)
@click.option("-o", "--output", metavar="FILE", help="Write to FILE instead of stdout.")
def export(number: str | None, takes_all: bool, form: str | None, output: str | None) -> None:
    """Write conversations as md, json, jsonl or one html page."""
    from mlxchat.chat.export import format_export
    from mlxchat.cli.render import sanitize

    if takes_all == (number is not None):
        raise UsageError("there is nothing to export; give either an ID or --all")
    with opened() as found:
        if takes_all:
            ids = [summary.id for summary in found.summaries()][::-1]
        else:
            ids = [found.find(number or "")]
        records = [found.record(id_) for id_ in ids]
    text = format_export(records, read_format(form, output), sanitize)
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text, encoding="utf-8")
        click.echo(f"Wrote {output}.", err=True)


def read_format(form: str | None, file: str | None) -> Any:
    """Returns the format of an export: as given, or as the file's name ends, or Markdown.

    Raises:
        UsageError: The name's end promises something else.
    """
    from mlxchat.chat.export import FORMATS

    ending = Path(file).suffix.lstrip(".").lower() if file else ""
    if form or ending in FORMATS:
        return form or ending
    if ending in _OTHER_FORMATS:
        raise UsageError(
            f".{ending} is not allowed; let the file's name end with"
            f" {', '.join(f'.{name}' for name in FORMATS)}"
        )
    return "md"


@history.command()
@_ids
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(numbers: tuple[str, ...], yes: bool) -> None:
    """Delete conversations for good."""
    from mlxchat.cli.forget import forget_prompts, forget_typed
    from mlxchat.cli.render_history import format_summaries
    from mlxchat.engine.prompt_store import PromptStore

    if not numbers:
        raise UsageError(
            "there is nothing to delete; give the IDs that `mlxchat history list` shows"
        )
    with opened() as found:
        ids = list(dict.fromkeys(found.find(number) for number in numbers))
        if not yes:
            chosen = [summary for summary in found.summaries() if summary.id in ids]
            show_table(format_summaries(chosen), sys.stderr)
            if not sys.stdin.isatty():
                raise UsageError("nothing was deleted; --yes deletes without asking")
            click.confirm("Delete for good?", abort=True, err=True)
        records = [found.record(id_) for id_ in ids]
        systems = found.systems(ids)
        found.delete(ids)
        systems -= found.systems()
    forget_prompts(PromptStore(), ids, systems)
    forget_typed(records)
    click.echo(f"Deleted {_conversations(len(ids))}.", err=True)


def _conversations(count: int) -> str:
    return f"{count} conversation{'s' * (count != 1)}"


@history.command()
@_one_id
@click.option("--all", "takes_all", is_flag=True, help="All conversations.")
def strip(number: str | None, takes_all: bool) -> None:
    """Keep the text only; the next turn reads it anew."""
    from mlxchat.engine.prompt_store import PromptStore

    if takes_all == (number is not None):
        raise UsageError("there is nothing to strip; give either an ID or --all")
    with opened() as found:
        ids = [s.id for s in found.summaries()] if takes_all else [found.find(number or "")]
        found.strip(ids)
    PromptStore().forget(None if takes_all else ids)
    click.echo(f"Stripped {_conversations(len(ids))} to the text.", err=True)


@history.command()
def path() -> None:
    """Print where the history lies."""
    from mlxchat.chat.history_file import history_path

    click.echo(str(history_path()))


@history.command()
@_json_option
def stats(as_json: bool) -> None:
    """Count what the history holds."""
    from dataclasses import asdict

    from mlxchat.cli.render_history import format_history_stats

    with opened() as found:
        counts = found.stats()
    click.echo(json.dumps(asdict(counts), indent=1) if as_json else format_history_stats(counts))


@history.command("import")
@click.argument("file", metavar="FILE")
def import_(file: str) -> None:
    """Import JSON messages, our own exports, or the logs.db of llm."""
    from mlxchat.chat.history_import import import_file

    num_new, num_known = import_file(Path(file))
    known = (
        f"; {num_known} {'was' if num_known == 1 else 'were'} there already" if num_known else ""
    )
    click.echo(f"Imported {_conversations(num_new)}{known}.", err=True)
