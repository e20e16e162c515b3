"""`mlxchat models`: the models on this disk, and what one of them brings along."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.groups import Group
from mlxchat.cli.options import resolve_model
from mlxchat.cli.render import (
    format_age,
    format_bytes,
    format_columns,
    format_count,
    format_table,
    one_line,
    sanitize,
)
from mlxchat.cli.screen import show_table
from mlxchat.errors import HistoryError, MlxchatError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mlxchat.model.library import LocalModel

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
HEADER = ("model", "size", "weights", "architecture", "runs in", "context", "used")


def name_models(beginning: str) -> Iterator[tuple[str, str]]:
    """Yields the names of models on this disk that begin so, each with what it is."""
    from mlxchat.model.library import list_models

    for model in list_models():
        if model.name.startswith(beginning):
            facts = (format_bytes(model.num_bytes), model.weights, model.architecture)
            yield model.name, model.problem or ", ".join(fact for fact in facts if fact)


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Offers the models on this disk to the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(name, help=what) for name, what in name_models(incomplete)]


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List the models on this disk, and show what is known of one.

    Nothing is loaded, and the Hub is not asked.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@models.command("list")
@_json_option
def list_(as_json: bool) -> None:
    """List the built-in model, those of the Hub cache, and folders that were used."""
    used = find_last_used()
    found = find_models(used)
    if as_json:
        click.echo(json.dumps({"models": [to_json(model, used) for model in found]}))
        return
    default = resolve_model(None, load_settings()) or "builtin"
    show_table(format_models(found, used, default), sys.stdout)


@models.command()
@click.argument("name", required=False, shell_complete=complete_model)
@click.option("--template", "what", flag_value="template", help="Print the chat template.")
@click.option("--license", "what", flag_value="license", help="Print the licence.")
@_json_option
def show(name: str | None, what: str | None, as_json: bool) -> None:
    """Show one model, or its template or licence; without NAME the default one."""
    from mlxchat.model.library import find_model

    model = find_model(resolve_model(name, load_settings()))
    if what is not None:
        click.echo(read_part(model, what))
    elif as_json:
        click.echo(json.dumps(to_json(model, find_last_used()) | read_details(model)))
    else:
        click.echo(format_details(model))


def find_last_used() -> dict[str, float]:
    """Returns when each model gave its last answer, as far as the history knows."""
    from mlxchat.chat.history import open_history

    with contextlib.suppress(HistoryError):
        history = open_history()
        if history is not None:
            with contextlib.closing(history):
                return history.last_used()
    return {}


def find_models(used: dict[str, float]) -> "list[LocalModel]":
    """Returns the models on this disk; folders are those that the history names."""
    from mlxchat.model.library import list_models

    return list_models(name for name in used if name.startswith("/"))


def to_json(model: "LocalModel", used: dict[str, float]) -> dict[str, Any]:
    """Returns what `--json` prints of one model."""
    age = time.time() - used[model.name] if model.name in used else None
    plain = {key: value if value != "" else None for key, value in asdict(model).items()}
    return plain | {"path": str(model.path), "used_s_ago": None if age is None else max(0.0, age)}


def format_models(found: "list[LocalModel]", used: dict[str, float], mark: str = "") -> str:
    """Returns the table of models.

    Args:
        found: The models.
        used: When each was used last, as far as it is known.
        mark: The name of the one that gets a star.
    """
    now, rows = time.time(), list[tuple[str, ...]]()
    for model in found:
        star = " *" if model.name == mark else ""
        row = (f"{one_line(model.name)}{star}", format_bytes(model.num_bytes))
        if model.problem:
            rows.append((*row, f"({model.problem})", model.architecture or "-", "-", "-", "-"))
            continue
        context = "-" if model.context is None else format_count(model.context)
        age = format_age(max(0.0, now - used[model.name])) if model.name in used else "-"
        rows.append((*row, model.weights, model.architecture, model.runs_in, context, age))
    return format_columns(HEADER, rows)


def read_details(model: "LocalModel") -> dict[str, Any]:
    """Returns what a model's files say beside the table: licence, template, sampling."""
    from mlxchat.model.checkpoint import read_generation_config
    from mlxchat.model.library import read_card

    card = read_card(model.path)
    chosen = read_generation_config(model.path)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {
        "license": card.license or None,
        "base_model": card.base_model or None,
        "templates": list(read_templates(model)),
        "sampling": {name: chosen[name] for name in names if name in chosen},
    }


def read_templates(model: "LocalModel") -> dict[str, str]:
    """Returns the chat templates of a model by name."""
    from mlxchat.model.tokenizer_files import read_chat_templates

    return read_chat_templates(model.path)


def format_details(model: "LocalModel") -> str:
    """Returns the report of `models show`."""
    facts = read_details(model)
    sampling = ", ".join(f"{name} {value}" for name, value in facts["sampling"].items())
    rows = [
        ("model", model.name),
        ("folder", str(model.path)),
        ("size", format_bytes(model.num_bytes)),
        ("weights", model.weights),
        ("architecture", model.architecture),
        ("runs in", model.runs_in),
        ("context", "" if model.context is None else f"{format_count(model.context)} tokens"),
        ("licence", facts["license"] or "not said in the files that are here"),
        ("made from", facts["base_model"] or ""),
        ("templates", ", ".join(facts["templates"]) or "none"),
        ("sampling", sampling or "the model names none"),
        ("problem", model.problem),
    ]
    return format_table([(name, one_line(str(value))) for name, value in rows if value])


def read_part(model: "LocalModel", what: str) -> str:
    """Returns the text of a template or a licence, fit for a terminal.

    Args:
        model: On this disk.
        what: `template` or `license`.

    Raises:
        MlxchatError: There is none.
    """
    from mlxchat.model.library import read_card

    if what == "template":
        found = read_templates(model)
        if not found:
            raise MlxchatError(f"{model.name} has no chat template; chats get a plain one")
        texts = [found["default"]] if "default" in found else list(found.values())
        return sanitize(texts[0].rstrip("\n"))
    card = read_card(model.path)
    if not (card.license_text or card.license):
        raise MlxchatError(
            f"{model.name} has no licence among its files; its page on the Hub may name one"
        )
    return sanitize(card.license_text.rstrip("\n")) or card.license
