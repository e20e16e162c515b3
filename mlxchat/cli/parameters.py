"""What `/set` can change about the answers, and `/params`: what is in force and who chose it."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mlxchat.cli.render import format_rereads, one_line, short_model
from mlxchat.errors import UsageError
from mlxchat.settings import (
    FILE_BOUNDS,
    LENGTH_BOUNDS,
    OVERFLOW,
    SAMPLING_BOUNDS,
    SPECULATE,
    Bounds,
)

if TYPE_CHECKING:
    from mlxchat.chat.options import ChatOptions
    from mlxchat.cli.slash import Context

PENALTY = Bounds(-2, 2)
_SWITCHES = {"on": True, "off": False}
BY_MODEL = "the model's generation_config.json"
BY_DEFAULT = "default"
BY_CONVERSATION = "this conversation"  # it was resumed with what it had


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that `/set` sets.

    Attributes:
        field: Of `SamplingSettings` or `ChatOptions`.
        bounds: Of numbers; None for on and off.
        has_default: Whether it can be given back to the model or the default.
        choices: The words that it can be; without any and without bounds on and off.
    """

    field: str
    bounds: Bounds | None = None
    has_default: bool = True
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The words that are allowed."""
        words = () if self.bounds else self.choices or tuple(_SWITCHES)
        return (*words, "default") if self.has_default else words

    def parse(self, name: str, text: str) -> Any:
        """Returns the value of a word; None is the default.

        Raises:
            UsageError: It is not allowed.
        """
        if text in self.values:
            return text if text in self.choices else _SWITCHES.get(text)
        if self.bounds is not None:
            try:
                value = int(text) if self.bounds.is_integer else float(text)
            except ValueError:
                value = None
            if value is not None and self.bounds.allow(value):
                return value
        allowed = [str(self.bounds)] if self.bounds else []
        raise UsageError(
            f"{name} {text} is not allowed; give {' or '.join([*allowed, *self.values])}"
        )


PARAMETERS = {
    "temp": Parameter("temperature", SAMPLING_BOUNDS["temperature"]),
    "top-p": Parameter("top_p", SAMPLING_BOUNDS["top_p"]),
    "top-k": Parameter("top_k", SAMPLING_BOUNDS["top_k"]),
    "min-p": Parameter("min_p", SAMPLING_BOUNDS["min_p"]),
    "xtc-probability": Parameter("xtc_probability", SAMPLING_BOUNDS["xtc_probability"]),
    "xtc-threshold": Parameter("xtc_threshold", SAMPLING_BOUNDS["xtc_threshold"]),
    "repetition-penalty": Parameter("repetition_penalty", SAMPLING_BOUNDS["repetition_penalty"]),
    "presence-penalty": Parameter("presence_penalty", PENALTY),
    "frequency-penalty": Parameter("frequency_penalty", PENALTY),
    "seed": Parameter("seed", SAMPLING_BOUNDS["seed"]),
    "max-tokens": Parameter("max_tokens", LENGTH_BOUNDS["max_tokens"]),
    "think": Parameter("think"),
    "think-budget": Parameter("think_budget", LENGTH_BOUNDS["think_budget"]),
    "keep-thinking": Parameter("keep_thinking", has_default=False),
    "verify": Parameter("verify", has_default=False),
    "memory-check": Parameter("checks_memory", has_default=False),
    "speculate": Parameter("speculate", has_default=False, choices=SPECULATE),
    "overflow": Parameter("overflow", has_default=False, choices=OVERFLOW),
}
STOP = "stop"  # texts, in the place of a number or a word
FILE_LIMIT = "max-file-kib"  # of what can be attached: the chat's business, not the session's
KV_BITS = "kv-bits"  # decided when the chat starts: what is cached cannot be read in another form
DRAFT = "draft-model"  # loaded when the chat starts
ADAPTER = "adapter"  # loaded with the model
SCHEMA = "schema"  # has a command of its own, since it is written in several ways
NAMES = (*PARAMETERS, STOP, FILE_LIMIT, KV_BITS, DRAFT, ADAPTER, SCHEMA)
# As the Hub, ollama and llama.cpp call them.
ALIASES = {
    "temperature": "temp",
    "repeat-penalty": "repetition-penalty",
    "num-predict": "max-tokens",
    "thinking-budget": "think-budget",
}


def find_name(name: str) -> str:
    """Returns the name that `/params` shows of what a person called so.

    Raises:
        UsageError: There is none; the message names the nearest.
    """
    import difflib

    name = name.lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name in NAMES:
        return name
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(NAMES)}"
    raise UsageError(f"{one_line(name)} is no setting; {hint}")


def change(options: "ChatOptions", parameter: Parameter, value: Any) -> "ChatOptions":
    """Returns the options with another value of one parameter."""
    if parameter.field in {field.name for field in fields(options.sampling)}:
        return replace(options, sampling=replace(options.sampling, **{parameter.field: value}))
    changes: dict[str, Any] = {parameter.field: value}
    return replace(options, **changes)


def set_parameter(context: "Context", name: str, text: str) -> list[str]:
    """Sets a parameter from the next turn on; returns what to say.

    Raises:
        UsageError: The name or the value is not allowed.
    """
    name = find_name(name)
    if name == FILE_LIMIT:
        return [_set_file_limit(context, text)]
    if name == STOP:
        return [_set_stop(context, text)]
    if name == KV_BITS:
        raise UsageError("kv-bits holds for a whole chat; start another with --kv-bits 8 or 4")
    if name == DRAFT:
        raise UsageError(
            "the draft model is loaded at the start; leave, and use --draft-model NAME"
        )
    if name == ADAPTER:
        raise UsageError("the adapter is loaded with the model; use /adapter PATH, or off")
    if name == SCHEMA:
        raise UsageError("what answers must match is set by /schema; see /help schema")
    parameter = PARAMETERS[name]
    value = parameter.parse(name, text)
    session = context.session
    if parameter.field == "think":  # asked again, the template answers again
        notices = session.set_thinking(value)
    else:
        notices = session.set_options(change(session.options, parameter, value))
    if value is None:
        context.origins.pop(parameter.field, None)
    else:
        context.origins[parameter.field] = "/set"
    if parameter.field in ("think", "keep_thinking") and (counts := session.count_rereads()):
        notices = [*notices, format_rereads(*counts)]
    return [f"{name}: {text}.", *notices]


def _set_stop(context: "Context", text: str) -> str:
    """Has answers end before a text; `default` takes all such texts away."""
    stop = () if text == "default" else (text,)
    context.session.set_options(replace(context.session.options, stop=stop))
    context.origins[STOP] = "/set"
    return f"{STOP}: {one_line(text)}."


def _set_file_limit(context: "Context", text: str) -> str:
    bounds = FILE_BOUNDS["max_kib"]
    if not (text.isascii() and text.isdigit() and bounds.allow(int(text))):
        raise UsageError(f"{FILE_LIMIT} {text} is not allowed; give {bounds}")
    context.attached.max_bytes = int(text) * 1024
    context.origins[FILE_LIMIT] = "/set"
    return f"{FILE_LIMIT}: {text}."


def list_parameters(context: "Context") -> list[tuple[str, str, str]]:
    """Returns what is in force for the next turn: names, values, and who chose them."""
    from mlxchat.cli.grammars import format_grammar

    session, origins = context.session, context.origins
    resolved = session.resolve_sampling()
    in_force, by_model = resolved if resolved is not None else ({}, frozenset())
    rows = []
    for name, parameter in PARAMETERS.items():
        field = parameter.field
        is_sampling = hasattr(session.options.sampling, field)
        value = getattr(session.options.sampling if is_sampling else session.options, field)
        is_chosen = value is not None and (value is not False or field == "think")
        if parameter.choices or field == "checks_memory":
            rows.append((name, format_value(value), origins.get(field, BY_DEFAULT)))
        elif is_chosen:
            rows.append((name, format_value(value), origins.get(field, BY_CONVERSATION)))
        elif is_sampling:
            source = BY_MODEL if field in by_model else BY_DEFAULT
            known = format_value(in_force[field]) if resolved is not None else "not known yet"
            rows.append((name, known, "the model is loading" if resolved is None else source))
        else:
            text = {
                "max_tokens": "what the context holds",
                "think": "as the template does",
                "think_budget": "as long as it takes",
            }
            rows.append((name, text.get(field, "off"), BY_DEFAULT))
    kib = str(context.attached.max_bytes // 1024)
    bits = session.options.kv_bits
    stop = ", ".join(map(repr, session.options.stop)) or "none"
    return [
        *rows,
        (STOP, stop, origins.get(STOP, BY_CONVERSATION) if session.options.stop else BY_DEFAULT),
        (FILE_LIMIT, kib, origins.get(FILE_LIMIT, BY_DEFAULT)),
        (KV_BITS, "off" if bits is None else str(bits), origins.get("kv_bits", BY_DEFAULT)),
        (DRAFT, session.options.draft_model or "none", origins.get("draft_model", BY_DEFAULT)),
        (ADAPTER, short_model(session.options.adapter or "none"), origins.get(ADAPTER, BY_DEFAULT)),
        (SCHEMA, format_grammar(session.options.grammar), origins.get("grammar", BY_DEFAULT)),
    ]


def format_value(value: object) -> str:
    """Returns a value as it is written after `/set NAME`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def format_some(context: "Context", names: Iterable[str]) -> str:
    """Returns the rows of `/params` with these names."""
    wanted = set(names)
    return format_parameters([row for row in list_parameters(context) if row[0] in wanted])


def format_parameters(rows: list[tuple[str, str, str]]) -> str:
    """Returns the `/params` report."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{n:<{widths[0]}}  {v:<{widths[1]}}  {who}" for n, v, who in rows)
