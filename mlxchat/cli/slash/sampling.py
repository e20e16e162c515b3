"""The slash commands that change how the model answers."""

from mlxchat.cli.slash.registry import Context, command, say_cost
from mlxchat.errors import UsageError


def _complete_mode(start: str) -> list[tuple[str, str]]:
    meanings = {
        "on": "",
        "off": "",
        "default": "as the template does",
        "budget ": "at most so many tokens",
    }
    return [(mode, meaning) for mode, meaning in meanings.items() if mode.startswith(start)]


@command(
    "think", "MODE", "Thinking `on`, `off`, `default`, or `budget N` tokens long.", _complete_mode
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
    choices = {"on": True, "off": False, "default": None}
    if argument not in choices:
        raise UsageError(
            f"/think {argument} is not allowed; write /think on, off or default, or budget N"
        )
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
