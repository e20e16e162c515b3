"""The slash commands that change how the model answers."""

from mlxchat.cli.slash.registry import Context, command, say_cost
from mlxchat.errors import UsageError


@command("think", "MODE", "Thinking `on`, `off` or `default`, where the template can.")
def think(context: Context, argument: str) -> None:
    """Turns thinking on or off."""
    choices = {"on": True, "off": False, "default": None}
    if argument not in choices:
        raise UsageError(f"/think {argument} is not allowed; write /think on, off or default")
    for text in context.session.set_thinking(choices[argument]) or [f"Thinking: {argument}."]:
        context.say(text)
    context.origins["think"] = "/think"
    say_cost(context)


@command("set", "NAME VALUE", "Set temp, top-p, seed ... from the next turn on.")
def set_(context: Context, argument: str) -> None:
    """Sets a parameter."""
    from mlxchat.cli import parameters

    name, _, value = argument.partition(" ")
    if not value.strip():
        raise UsageError(f"write /set NAME VALUE; names are {', '.join(parameters.NAMES)}")
    for line in parameters.set_parameter(context, name, value.strip()):
        context.say(line)


@command("params", "", "Show what is in force, and who chose it.")
def params(context: Context, argument: str) -> None:
    """Shows the parameters."""
    from mlxchat.cli import parameters

    context.say(parameters.format_parameters(parameters.list_parameters(context)))
