"""The slash command about the model itself."""

from mlxchat.cli.render import format_count, format_model, format_table, one_line
from mlxchat.cli.slash.registry import Context, command, say_cost
from mlxchat.errors import MlxchatError


@command("model", "[NAME]", "Show the model, or go on with another one.")
def model(context: Context, argument: str) -> None:
    """Shows or changes the model; the conversation stays."""
    session = context.session
    if not argument:
        if session.info is None:
            raise MlxchatError("the model is not loaded yet; send a message first")
        rows = format_model(session.info)
        rows.append(("context", f"{format_count(session.info.context_limit)} tokens"))
        context.say(format_table(rows))
        return
    from mlxchat.cli.choices import apply_to_model
    from mlxchat.cli.turn import follow

    before, old = session.info, session.model
    info = follow(lambda: session.switch_model(argument), context.screen)
    if info is before:
        context.say(f"{one_line(info.model)} is loaded already.")
        return
    apply_to_model(context, old, session.model)
    for text in info.notices:
        context.say(text)
    context.say(f"From here {one_line(info.model)} answers; the conversation goes on.")
    say_cost(context)
