"""What all `inspect` commands share: their options, the model they look into, and where it goes."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlxchat.cli.choices import choose_adapter
from mlxchat.cli.options import ADAPTER_OPTION, MODEL_OPTION, resolve_model
from mlxchat.cli.page import HTML_OPTION, write_page
from mlxchat.errors import UsageError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mlxchat.chat.prompt import PromptRenderer
    from mlxchat.engine.worker import JobContext
    from mlxchat.model.embedder import Embedder
    from mlxchat.model.language_model import LanguageModel
    from mlxchat.model.tokenizer import Tokenizer

T = TypeVar("T")
Json = dict[str, Any]

_CHAT = click.option(
    "--chat", "is_chat", is_flag=True, help="Render the text as a message to the model first."
)
_COMMON = (
    MODEL_OPTION,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    HTML_OPTION,
)


def look_options(
    *, chat: bool = False, adapter: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the shared options to a command.

    Args:
        chat: `--chat`, where the text may be a message.
        adapter: `--adapter`, where the weights count.
    """
    options = [*_COMMON]
    if adapter:
        options.insert(1, ADAPTER_OPTION)  # after the model
    if chat:
        options.insert(0, _CHAT)
    return lambda function: functools.reduce(lambda f, add: add(f), reversed(options), function)


@dataclass(frozen=True, slots=True)
class LookProgress:
    """Passes of the model that were made, of those to make."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked into; use it on the worker thread.

    Attributes:
        name: The model as a person knows it.
        model: Native or zoo.
        tokenizer: Its tokenizer.
        renderer: Renders messages as its template does.
        fingerprint: Identity of config and weights.
        context: Of the job that looks.
    """

    name: str
    model: "LanguageModel"
    tokenizer: "Tokenizer"
    renderer: "PromptRenderer"
    fingerprint: str
    context: "JobContext"

    def report(self, done: int, total: int) -> None:
        """Shows how far the work has come."""
        self.context.emit(LookProgress(done, total))

    def check(self) -> None:
        """Ends the work when the person has stopped it."""
        self.context.check()

    def encode(self, text: str, *, is_chat: bool = False) -> list[int]:
        """Returns the ids of a text as it is, or of the message that it is.

        Raises:
            UsageError: It has none.
        """
        from mlxchat.chat.template import Message

        if is_chat:
            return list(self.renderer.render_ids([Message("user", text)]).token_ids)
        if not (token_ids := self.tokenizer.encode(text, add_special_tokens=True)):
            raise UsageError("the text has no tokens; give at least one word")
        return token_ids

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Returns each token's own text."""
        return [self.tokenizer.token_text(i) for i in token_ids]


@dataclass(frozen=True, slots=True)
class EncoderSubject:
    """An encoder that is looked into; use it on the worker thread.

    Attributes:
        name: The model as a person knows it.
        embedder: The model and its tokenizer.
    """

    name: str
    embedder: "Embedder"

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text with what the tokenizer puts around it.

        Raises:
            UsageError: There are none, or more than the model reads.
        """
        token_ids = self.embedder.tokenizer.encode(text, add_special_tokens=True)
        most = self.embedder.max_tokens
        if not 0 < len(token_ids) <= most:
            raise UsageError(f"the text has {len(token_ids)} tokens; this model reads 1 to {most}")
        return token_ids


def look(
    model: str | None,
    adapter: str | None,
    work: Callable[[Subject], T],
    encoder: Callable[[EncoderSubject], T] | None = None,
) -> T:
    """Loads a model, shows the progress of that, and does the work on the worker thread.

    Args:
        model: What `--model` names.
        adapter: What `--adapter` names; without it the settings choose.
        work: Returns plain data: arrays belong to the worker.
        encoder: The same for an encoder; without it encoders are refused.
    """
    from mlxchat.cli.progress import run_job

    settings = load_settings()
    name = resolve_model(model, settings)
    path = choose_adapter(settings, name, adapter)
    notices: list[str] = []
    found = run_job(
        lambda context: _look_into(name, path, work, encoder, notices, context), _format_event
    )
    for notice in notices:
        click.echo(notice, err=True)
    return found


def _look_into(
    name: str | None,
    adapter: str | None,
    work: Callable[[Subject], T],
    encoder: Callable[[EncoderSubject], T] | None,
    notices: list[str],
    context: "JobContext",
) -> T:
    """Loads a model, notes what is to be told of it, and does the work; on the worker thread."""
    from mlxchat.model.device import load_mlx

    load_mlx()
    from mlxchat.chat.loading import adapter_notices, find_model, load_folder
    from mlxchat.chat.options import ChatOptions
    from mlxchat.chat.results import LoadProgress
    from mlxchat.model.checkpoint import read_config
    from mlxchat.model.embedder import load_embedder
    from mlxchat.model.families import is_encoder

    def report(event: LoadProgress) -> None:
        context.check()
        context.emit(event)

    folder = find_model(name, report, context.check)
    if encoder is not None and is_encoder(read_config(folder.path)):
        embedder = load_embedder(
            folder.path,
            lambda phase, done, total: report(LoadProgress(phase, done, total)),
            adapter=adapter,
        )
        return encoder(EncoderSubject(folder.name, embedder))
    options = ChatOptions(idle_work=False, keeps_history=False, adapter=adapter)
    runner, _ = load_folder(folder, options, report)
    loaded = runner.loaded
    notices += [] if loaded.adapter is None else adapter_notices(loaded.adapter, folder)
    context.emit("looking inside")
    parts = runner.name, loaded.model, runner.tokenizer, runner.renderer, loaded.fingerprint
    return work(Subject(*parts, context))


def _format_event(event: Any, elapsed_s: float) -> str:
    from mlxchat.cli.render import format_bar, format_progress

    if isinstance(event, str):
        return event
    if isinstance(event, LookProgress):
        return f"{format_bar(event.done / event.total)} {event.done} passes"
    return format_progress(event, elapsed_s)


def show(
    facts: Json,
    view: "Callable[[Console], Sequence[RenderableType]]",
    page: Callable[[], str],
    *,
    as_json: bool,
    html: str | None,
) -> None:
    """Puts what was found where the person wants it.

    Args:
        facts: What `--json` prints.
        view: Makes what the terminal shows, for its width and colours.
        page: Makes the web page.
        as_json: Print the facts instead of the view.
        html: Also write the page to this file.
    """
    if html is not None:
        write_page(html, page())
    if as_json:
        click.echo(json.dumps(facts))
    else:
        from mlxchat.cli.inspect.paint import make_console

        console = make_console()
        console.print(*view(console), sep="\n")
    if html is not None:
        click.echo(f"Wrote {html}.", err=True)
