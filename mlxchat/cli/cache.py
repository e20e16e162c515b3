"""`mlxchat cache`: what is stored of prompts on disk, and making and removing it."""

import contextlib
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.groups import Group
from mlxchat.cli.options import ADAPTER_OPTION, KV_BITS_OPTION, MODEL_OPTION, read_request
from mlxchat.cli.render import (
    cut,
    format_age,
    format_bytes,
    format_columns,
    format_count,
    format_share,
    format_table,
    one_line,
    short_model,
)
from mlxchat.cli.screen import show_table
from mlxchat.settings import find_system, load_settings

if TYPE_CHECKING:
    from mlxchat.engine.prompt_store import PromptStore
    from mlxchat.engine.stored_name import Entry

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """List, make and remove stored prompt caches.

    The keys and values of system prompts and conversations are kept on disk, so that the next
    start with the same model reads only what is new.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


def open_store() -> "PromptStore":
    """Opens the folder of stored prompt caches with the budget of the settings.

    Raises:
        SettingsError: `config.toml` is broken.
    """
    from mlxchat.engine.prompt_store import PromptStore
    from mlxchat.engine.store_budget import Budget

    return PromptStore(budget=Budget.of(load_settings().cache_max_gib))


def _describe(store: "PromptStore", entry: "Entry") -> dict[str, Any]:
    from mlxchat.engine.stored_file import BadFileError

    row: dict[str, Any] = {
        "name": entry.name,
        "what": entry.what,
        "tokens": entry.num_ids,
        "bytes": entry.num_bytes,
        "age_s": max(0.0, time.time() - entry.used),
        "model": None,
        "label": None,
        "from_token": 0,
    }
    with contextlib.suppress(BadFileError, OSError):
        says = store.describe(entry)
        row |= {"model": says.model, "label": says.label, "from_token": says.start}
    return row


@cache.command("list")
@_json_option
def list_(as_json: bool) -> None:
    """List stored prompt caches, the last used first."""
    store = open_store()
    entries = sorted(store.entries(), key=lambda e: e.used, reverse=True)
    rows = [_describe(store, entry) for entry in entries]
    if as_json:
        click.echo(json.dumps({"entries": rows}))
    elif not rows:
        click.echo("nothing is stored yet; a chat or `mlxchat cache warm` stores prompts")
    else:
        show_table(
            format_columns(
                ("model", "what", "tokens", "size", "used", "begins"),
                [
                    (
                        cut(short_model(row["model"]), 24)
                        if row["model"]
                        else "unreadable; prune removes it",
                        row["what"],
                        format_count(row["tokens"]),
                        format_bytes(row["bytes"]),
                        format_age(row["age_s"]),
                        one_line(row["label"] or ""),
                    )
                    for row in rows
                ],
            ),
            sys.stdout,
        )


@cache.command()
@_json_option
def info(as_json: bool) -> None:
    """Show where prompt caches lie, and how much disk they take and may take."""
    store = open_store()
    usage, entries = store.usage(), store.entries()
    if as_json:
        facts = {
            "folder": str(store.folder),
            "entries": len(entries),
            "used_bytes": usage.used,
            "allowed_bytes": usage.allowed,
            "free_bytes": usage.free,
            "min_free_bytes": store.budget.min_free_bytes,
            "max_gib": load_settings().cache_max_gib,
        }
        click.echo(json.dumps(facts))
        return
    floor = format_bytes(store.budget.min_free_bytes)
    rows = [
        ("folder", str(store.folder)),
        ("stored", f"{format_count(len(entries))} prompts, {format_bytes(usage.used)}"),
        ("allowed", f"{format_bytes(usage.allowed)} ({_name_limit(store)})"),
        ("free disk", f"{format_bytes(usage.free)}; {floor} of it always stay free"),
    ]
    show_table(format_table(rows), sys.stdout)


def _name_limit(store: "PromptStore") -> str:
    """Says what decides how much disk the files may take."""
    limit = load_settings().cache_max_gib
    if limit is not None:
        return f"cache.max_gib = {limit:g}"
    largest, share = format_bytes(store.budget.max_bytes), format_share(store.budget.disk_share)
    return f"{largest} or {share} of the free disk; cache.max_gib in the settings changes it"


@cache.command()
@_json_option
def prune(as_json: bool) -> None:
    """Remove stored prompt caches that are broken or over the budget."""
    _tell_removed(open_store().prune(), as_json)


@cache.command()
@_json_option
def clear(as_json: bool) -> None:
    """Remove all stored prompt caches; chats read their prompts again."""
    store = open_store()
    removed = store.clear()
    _tell_removed(removed, as_json)
    if left := len(store.entries()):
        from mlxchat.errors import MlxchatError

        raise MlxchatError(f"{left} files in {store.folder} cannot be removed; check permissions")


def _tell_removed(removed: "list[Entry]", as_json: bool) -> None:
    size = sum(e.num_bytes for e in removed)
    if as_json:
        click.echo(json.dumps({"removed": len(removed), "bytes": size}))
    else:
        click.echo(f"removed {format_count(len(removed))} prompt caches, {format_bytes(size)}")


@cache.command()
@MODEL_OPTION
@click.option(
    "-s",
    "--system",
    metavar="TEXT",
    required=True,
    help="The system prompt, or `@name` of one in the settings.",
)
@ADAPTER_OPTION
@KV_BITS_OPTION
@_json_option
def warm(
    model: str | None, adapter: str | None, system: str, kv_bits: int | None, as_json: bool
) -> None:
    """Read a system prompt and store it, so that the first answer comes at once."""
    from mlxchat.cli.screen import Screen
    from mlxchat.cli.turn import follow

    screen = Screen(sys.stdout, sys.stderr)
    text = find_system(system, load_settings())
    params = {"model": model, "adapter": adapter, "kv_bits": kv_bits}
    with read_request(params).opened() as session:
        warmed = follow(lambda: session.warm(text), screen)
    if as_json:
        screen.line(json.dumps(asdict(warmed)))
        return
    before = warmed.num_tokens - warmed.num_read
    known = f" ({format_count(before)} were stored before)" if before else ""
    screen.line(f"{format_count(warmed.num_tokens)} tokens of {warmed.model} are stored{known}")
