"""The options that `chat` and `generate` share, and how they and the settings become a session."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mlxchat.cli.choices import (
    BUILTIN,
    BY_MODEL_TABLE,
    choose_adapter,
    choose_sampling,
    choose_system,
)
from mlxchat.cli.render import one_line
from mlxchat.cli.resume import find_adapter
from mlxchat.cli.theme import DEFAULT, find_theme
from mlxchat.errors import SettingsError, UsageError
from mlxchat.settings import (
    LENGTH_BOUNDS,
    OVERFLOW,
    SAMPLING_BOUNDS,
    SPECULATE,
    Settings,
    find_system,
    load_settings,
    settings_path,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mlxchat.chat.history_record import Restored
    from mlxchat.chat.options import Steer
    from mlxchat.chat.session import Session
    from mlxchat.cli.attachments import Attachments

# Each answer of a batch holds keys and values of its own.
MOST_ANSWERS = 64
DEFAULT_SPECULATE = "auto"  # it stops where nothing is gained: scripts/bench_speculation


def _number(flag: str, name: str, text: str) -> Callable[..., Any]:
    bounds = (SAMPLING_BOUNDS | LENGTH_BOUNDS)[name]
    parse = int if bounds.is_integer else float

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        with contextlib.suppress(ValueError):
            number = parse(value)
            if bounds.allow(number):
                return number
        raise click.BadParameter(f"{value!r} is not allowed; give {bounds}", ctx, param)

    metavar = "N" if bounds.is_integer else "X"
    return click.option(flag, name, callback=check, metavar=metavar, help=text)


def _refuse_empty(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if "" in value:
        raise click.BadParameter("an empty string is not allowed; give some text", ctx, param)
    return value


def _read_steers(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> "tuple[Steer, ...] | None":
    if not value:
        return None
    from mlxchat.chat.steering import check_steers, parse_steer

    steers = tuple(map(parse_steer, value))
    check_steers(steers)
    return steers


def _complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    from mlxchat.cli.models import complete_model

    return complete_model(context, parameter, incomplete)


MODEL_OPTION = click.option(
    "-m",
    "--model",
    metavar="NAME",
    envvar="MLXCHAT_MODEL",
    show_envvar=True,
    shell_complete=_complete_model,
    help="A folder, a Hugging Face repository, or 'builtin' (the tiny model that is included).",
)
ADAPTER_OPTION = click.option(
    "--adapter",
    metavar="PATH",
    help="A folder with a LoRA, DoRA or full adapter for the model; `off` for none.",
)
KV_BITS_OPTION = click.option(
    "--kv-bits",
    type=click.Choice(("8", "4")),
    metavar="8|4",
    callback=lambda ctx, param, value: None if value is None else int(value),
    help="Hold keys and values in 8 or 4 bits: less memory for long contexts.",
)
_OPTIONS = (
    MODEL_OPTION,
    ADAPTER_OPTION,
    click.option(
        "-s",
        "--system",
        metavar="TEXT",
        help="The system prompt, or `@name` of one in the settings.",
    ),
    _number("--max-tokens", "max_tokens", "Stop the answer after N tokens."),
    _number("--temp", "temperature", "Temperature; 0 is greedy and reproducible."),
    _number("--top-p", "top_p", "Sample from the likeliest tokens that hold this probability."),
    _number("--top-k", "top_k", "Sample from the N likeliest tokens; 0 is off."),
    _number("--min-p", "min_p", "Drop tokens less likely than X times the likeliest; 0 is off."),
    _number("--xtc-probability", "xtc_probability", "How often XTC drops top choices; 0 is off."),
    _number("--xtc-threshold", "xtc_threshold", "What XTC takes for a top choice; 0.1 at first."),
    _number("--repetition-penalty", "repetition_penalty", "Above 1 makes repetition less likely."),
    _number("--seed", "seed", "The same seed gives the same text."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=_refuse_empty,
        help="End the answer before this text; may be given more than once.",
    ),
    click.option(
        "--json-schema",
        metavar="FILE|JSON|any",
        help="Have the answer match a JSON schema; `any` is any JSON object.",
    ),
    click.option("--regex", metavar="PATTERN", help="Have the answer match a regular expression."),
    click.option("--grammar", metavar="FILE", help="Have the answer match a grammar in Lark."),
    _number("--max-context", "max_context", "Hold at most N tokens of conversation."),
    click.option(
        "--overflow",
        type=click.Choice(OVERFLOW),
        metavar="MODE",
        help="What a full context does: 'error' refuses the message, 'drop-oldest' drops turns.",
    ),
    KV_BITS_OPTION,
    click.option(
        "--speculate",
        type=click.Choice(SPECULATE),
        metavar="MODE",
        help="Several tokens a step where text repeats: 'off', 'lookup', or 'auto'.",
    ),
    click.option(
        "--draft-model",
        metavar="NAME",
        help="A smaller model with the same tokenizer, which foresees tokens for this one.",
    ),
    click.option(
        "--think/--no-think",
        default=None,
        help="Reason before the answer or not, where the model knows a switch.",
    ),
    _number("--think-budget", "think_budget", "Close the thinking after N tokens."),
    click.option("--keep-thinking", is_flag=True, help="Keep reasoning in the conversation."),
    click.option(
        "--steer",
        "steering",
        multiple=True,
        metavar="NAME:X",
        callback=_read_steers,
        help="Add a steering vector, X times; may be given more than once.",
    ),
    click.option("--verify", is_flag=True, help="Compare each turn with a from-scratch prefill."),
    click.option("--no-history", is_flag=True, help="Keep this conversation off the disk."),
    click.option("--timing", is_flag=True, help="Report where the time went, on stderr."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer."),
    click.option("--plain", is_flag=True, help="No colour and no progress display."),
)


def chat_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the shared options to a command."""
    return functools.reduce(lambda command, option: option(command), reversed(_OPTIONS), function)


def resolve_model(model: str | None, settings: Settings) -> str | None:
    """Returns the model to load; None is the built-in one.

    Args:
        model: What `--model` or `MLXCHAT_MODEL` names, if anything.
        settings: Names the default.
    """
    name = model or settings.model or BUILTIN
    return None if name == BUILTIN else name


class Request(NamedTuple):
    """Which model a person asked for and how it shall answer.

    Attributes:
        model: None is the built-in one.
        sampling: Fields of `SamplingSettings`.
        options: Fields of `ChatOptions`, the sampling apart.
        settings: What `config.toml` says.
        origins: Who chose, by the names of fields.
        given: What the command line itself says, which goes before what was restored.
        kind: The command, as the history names it.
        restored: The conversation to go on with.
    """

    model: str | None
    sampling: dict[str, Any]
    options: dict[str, Any]
    settings: Settings
    origins: dict[str, str]
    given: dict[str, Any]
    kind: str = "chat"
    restored: "Restored | None" = None

    @property
    def keeps_history(self) -> bool:
        """Whether what is said goes to disk."""
        return bool(self.options.get("keeps_history", True))

    def go_on_with(self, restored: "Restored") -> "Request":
        """Returns the request for a conversation of the history, whose model is the default."""
        has_model = self.given.get("model") is not None
        has_adapter = self.given.get("adapter") is not None
        stored = resolve_model(restored.record.summary.model, Settings())
        model = self.model if has_model else stored
        typed = {n: x for n, x in self.sampling.items() if self.origins.get(n) == "command line"}
        sampling, chosen = choose_sampling(self.settings, typed, model)
        kept = {n: who for n, who in self.origins.items() if n not in self.sampling}
        options = self.options
        if not has_model and not has_adapter:
            options = {**options, "adapter": find_adapter(restored.record)}
        return self._replace(
            model=model,
            sampling=sampling,
            options=options,
            origins=kept | chosen,
            restored=restored,
        )

    def open(self, *, idle_work: bool = True) -> "Session":
        """Makes the session; nothing is loaded yet.

        Args:
            idle_work: Prepare the next turn after each; a waste of time where there is none.
        """
        from mlxchat.chat.options import ChatOptions
        from mlxchat.chat.recorder import Recorder
        from mlxchat.chat.session import Session
        from mlxchat.engine.options import SamplingSettings

        sampling = SamplingSettings(**self.sampling)
        options = ChatOptions(sampling=sampling, idle_work=idle_work, **self.options)
        recorder = Recorder(self.kind) if options.keeps_history else None
        session = Session(self.model, options, recorder)
        if self.restored is not None:
            session.restore(self.restored)
            if self.given.get("system") is not None:
                session.set_system(self.options["system"])
            if self.given.get("think") is not None:
                session.set_thinking(self.given["think"])
        return session

    @contextlib.contextmanager
    def opened(self, *, idle_work: bool = True) -> "Iterator[Session]":
        """Makes the session and closes it in the end; what it says then goes to stderr."""
        session = self.open(idle_work=idle_work)
        try:
            yield session
        finally:
            for text in session.close():
                with contextlib.suppress(OSError):
                    click.echo(one_line(text), err=True)


def read_request(params: dict[str, Any], kind: str = "chat") -> Request:
    """Joins the command line with `config.toml`; the command line wins.

    Args:
        params: The values of `chat_options` by name, without those that only concern the display.
        kind: The command, as the history names it.

    Raises:
        SettingsError: `config.toml` is broken.
    """
    settings = load_settings()
    given = {name: value for name, value in params.items() if value is not None}
    origins = dict.fromkeys(given, "command line")
    typed = {name: given.pop(name) for name in SAMPLING_BOUNDS if name in given}
    model = resolve_model(given.pop("model", None), settings)
    sampling, chosen = choose_sampling(settings, typed, model)
    origins |= chosen
    adapter = choose_adapter(settings, model, given.get("adapter"))
    if adapter is not None and "adapter" not in given:
        origins["adapter"] = BY_MODEL_TABLE
    given["adapter"] = adapter
    if "system" in given:  # `--system ""` takes the default away
        system = find_system(given.pop("system"), settings) or None
    else:
        system = choose_system(settings, model)
    if given.keys() & {"json_schema", "regex", "grammar"}:
        from mlxchat.cli.grammars import take_grammar

        given["grammar"], origins["grammar"] = take_grammar(given), "command line"
    if settings.overflow is not None and "overflow" not in given:
        given["overflow"], origins["overflow"] = settings.overflow, "config.toml"
    if not settings.memory_check:
        given["checks_memory"], origins["checks_memory"] = False, "config.toml"
    if settings.max_file_kib is not None:
        origins["max-file-kib"] = "config.toml"
    if given.pop("no_history", False) or not settings.history:
        given["keeps_history"] = False
    origins |= dict.fromkeys(settings.engine.keys() - given.keys(), "config.toml")
    options = {
        "system": system,
        "cache_max_gib": settings.cache_max_gib,
        "speculate": DEFAULT_SPECULATE,
    }
    options |= {**settings.engine, **given}
    said = _from_command_line(params)
    return Request(model, sampling, options, settings, origins, said, kind)


def make_attachments(request: Request) -> "Attachments":
    """Makes the place for what waits for the next message, with the limit of the settings."""
    from mlxchat.cli.attachments import Attachments

    kib = request.settings.max_file_kib
    return Attachments() if kib is None else Attachments(kib * 1024)


def _from_command_line(params: dict[str, Any]) -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    typed = click.core.ParameterSource.COMMANDLINE
    return {n: x for n, x in params.items() if context.get_parameter_source(n) is typed}


def read_look() -> dict[str, Any]:
    """Returns how answers shall look, as `Screen` takes it.

    Raises:
        SettingsError: `config.toml` is broken or names no theme.
    """
    display = load_settings().display
    try:
        find_theme(display.theme or DEFAULT)
    except UsageError as error:
        raise SettingsError(f"{settings_path()}: {error}") from None
    return {"markdown": display.markdown, "theme": display.theme or DEFAULT}
