"""The slash commands that change how the model answers."""

import re
from typing import TYPE_CHECKING

from mlxchat.cli.failures import stoppable
from mlxchat.cli.render import format_count, one_line
from mlxchat.cli.slash.registry import Context, command, say_cost
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.options import Steer

# `temp 0.2`, and `temp=0.2` as other programs have it.
_NAME_AND_VALUE = re.compile(r"([^\s=]+)\s*(?:=|\s)?\s*(.*)", re.DOTALL)


def _complete_mode(start: str) -> list[tuple[str, str]]:
    meanings = {
        "on": "",
        "off": "",
        "default": "as the template does",
        "budget ": "at most so many tokens",
    }
    return [(mode, meaning) for mode, meaning in meanings.items() if mode.startswith(start)]


@command(
    "think", "[MODE]", "Thinking `on`, `off`, `default`, or `budget N` tokens long.", _complete_mode
)
def think(context: Context, argument: str) -> None:
    """Turns thinking on or off, or gives it a budget."""
    word, _, number = argument.partition(" ")
    if word == "budget":
        from mlxchat.cli import parameters

        value = number.strip() or "default"
        value = "default" if value == "off" else value
        for line in parameters.set_parameter(context, "think-budget", value):
            context.say(line)
        return
    if not argument:
        from mlxchat.cli import parameters

        context.say(parameters.format_some(context, ("think", "think-budget", "keep-thinking")))
        return
    choices = {"on": True, "off": False, "default": None}
    if argument not in choices:
        raise UsageError(
            f"/think {argument} is not allowed; write /think on, off or default, or budget N"
        )
    for text in context.session.set_thinking(choices[argument]) or [f"Thinking: {argument}."]:
        context.say(text)
    context.origins["think"] = "/think"
    say_cost(context)


@command("set", "[NAME VALUE]", "Set temp, top-p, seed ... from the next turn on.")
def set_(context: Context, argument: str) -> None:
    """Sets a parameter; without a value shows it, without a name all."""
    from mlxchat.cli import parameters

    argument = argument.removeprefix("parameter ").strip()  # as ollama has it
    match = _NAME_AND_VALUE.fullmatch(argument)
    if match is None:
        context.say(parameters.format_parameters(parameters.list_parameters(context)))
        context.say("/set NAME VALUE sets one, to `default` gives it back.")
        return
    name, value = match.groups()
    if not value:
        context.say(parameters.format_some(context, (parameters.find_name(name),)))
        return
    for line in parameters.set_parameter(context, name, value.strip()):
        context.say(line)


def _complete_schema(start: str) -> list[tuple[str, str]]:
    from mlxchat.cli.files import complete_path

    meanings = {
        "any": "any JSON object",
        "regex ": "a regular expression",
        "grammar ": "a file in Lark",
        "off": "",
    }
    words = [(word, meaning) for word, meaning in meanings.items() if word.startswith(start)]
    before, path = ("grammar ", start[8:]) if start.startswith("grammar ") else ("", start)
    return words + [(before + found, "") for found in complete_path(path)]


@command(
    "schema",
    "[WHAT]",
    "Answers match a JSON schema: a file, JSON, `any` or `off`.",
    _complete_schema,
)
def schema(context: Context, argument: str) -> None:
    """Holds answers to a schema, `regex PATTERN` or `grammar FILE` from the next turn on."""
    from dataclasses import replace

    from mlxchat.cli.grammars import OPTIONS, format_grammar, read_grammar

    session = context.session
    if not argument:
        held = format_grammar(session.options.grammar)
        context.say(f"Schema: {held}. Write /schema FILE|JSON|any, regex PATTERN, grammar FILE.")
        return
    word, _, rest = argument.partition(" ")
    kind = OPTIONS.get(word, "json_schema")
    if kind != "json_schema" and not rest.strip():
        raise UsageError(f"/schema {word} names nothing; give a pattern or a file after it")
    text = argument if kind == "json_schema" else rest.strip()
    grammar = None if argument == "off" else read_grammar(kind, text)
    session.set_options(replace(session.options, grammar=grammar))
    context.origins["grammar"] = "/schema"
    how = f"{format_grammar(grammar)}, from the next turn on" if grammar else "off"
    context.say(one_line(f"Schema: {how}."))


def _vector_names(beginning: str) -> list[tuple[str, str]]:
    """Returns the vectors that begin so, each with the strength that was measured best."""
    from mlxchat.lens.steering_file import list_vectors

    found = [("off", "the plain model")]
    for info in list_vectors():
        best = max(info.sweep, key=lambda s: float(s["effect"]))
        found.append((f"{info.name} {best['coeff']:g}", f"made on {one_line(info.model)}"))
    return [(name, meaning) for name, meaning in found if name.startswith(beginning)]


@command(
    "steer",
    "[NAME X]",
    "Steer answers with a vector, X times; `off` stops it.",
    _vector_names,
)
def steer(context: Context, argument: str) -> None:
    """Adds a steering vector from the next turn on, or takes all away."""
    from mlxchat.chat.steering import check_steers, format_steers, parse_steer

    session = context.session
    if not argument:
        context.say(_say_steering(session.options.steering))
        return
    steers = () if argument == "off" else (parse_steer(argument),)
    check_steers(steers)
    num_held = session.context_used if steers != session.options.steering else 0
    with stoppable():
        session.set_steering(steers)
    context.origins["steer"] = "/steer"
    how = f"{format_steers(steers)}, from the next turn on" if steers else "off"
    context.say(f"Steering: {how}.")
    if num_held:
        context.say(f"The {format_count(num_held)} tokens that were read are read again.")


def _say_steering(steers: "tuple[Steer, ...]") -> str:
    from mlxchat.chat.steering import format_steers
    from mlxchat.lens.steering_file import list_vectors

    known = ", ".join(info.name for info in list_vectors())
    there = f"There are {known}." if known else "Make a vector with mlxchat inspect steer make."
    return f"Steering: {format_steers(steers) if steers else 'off'}. {there}"


@command("params", "", "Show what is in force, and who chose it.")
def params(context: Context, argument: str) -> None:
    """Shows the parameters."""
    from mlxchat.cli import parameters

    context.say(parameters.format_parameters(parameters.list_parameters(context)))
