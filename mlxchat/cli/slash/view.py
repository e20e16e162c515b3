"""The slash commands that show what happened, and change how answers look."""

from mlxchat.cli.slash.registry import Context, command
from mlxchat.cli.theme import NAMES, SUFFIX, find_theme
from mlxchat.errors import MlxchatError, UsageError


@command("stats", "", "Show model, context and the last answer's timing.")
def stats(context: Context, argument: str) -> None:
    """Shows where the time and the memory went."""
    from mlxchat.cli.render_views import format_stats

    context.say(format_stats(context.session))


def _complete_mode(start: str) -> list[tuple[str, str]]:
    return [(mode, "") for mode in ("on", "off") if mode.startswith(start)]


@command("context", "", "Show what fills the context: system prompt, turns, room.")
def context_(context: Context, argument: str) -> None:
    """Shows what fills the context."""
    from mlxchat.cli.render_views import format_context
    from mlxchat.cli.turn import follow

    context.say(format_context(follow(context.session.view_context, context.screen), context.width))


@command(
    "timing", "[MODE]", "Show where the last turn's time went; `on`: after each.", _complete_mode
)
def timing(context: Context, argument: str) -> None:
    """Shows the phases of the last turn, or switches the report after each answer."""
    from mlxchat.cli.render_views import format_phases

    if argument in ("on", "off"):
        if context.answers is not None:
            context.answers.timing = argument == "on"
        context.say(f"Timing after each answer: {argument}.")
    elif argument:
        raise UsageError(f"/timing {argument} is not allowed; write /timing, /timing on or off")
    elif context.session.last is None:
        raise MlxchatError("there is no answer yet; send a message first")
    else:
        context.say(format_phases(context.session.last, context.width))


@command("tokens", "[TEXT]", "Show the token ids of the last message, or of TEXT.")
def tokens(context: Context, argument: str) -> None:
    """Shows ids with their texts."""
    from mlxchat.cli.render_views import format_tokens
    from mlxchat.cli.turn import follow

    if not argument and not context.session.num_turns:
        raise MlxchatError("the conversation is empty; send a message first, or write /tokens TEXT")
    pieces = follow(lambda: context.session.list_tokens(argument or None), context.screen)
    context.say(format_tokens(pieces, context.width - 1))


@command("cache", "", "Show what the KV cache holds.")
def cache(context: Context, argument: str) -> None:
    """Shows what the KV cache holds."""
    from mlxchat.cli.render_views import format_cache

    report = context.session.cache_report()
    context.say("The model is not loaded yet." if report is None else format_cache(report))


def _complete_theme(start: str) -> list[tuple[str, str]]:
    names = [name for theme in NAMES for name in (theme, f"{theme} {SUFFIX}")]
    return [(name, "") for name in names if name.startswith(start)]


@command(
    "markdown",
    "[MODE]",
    "Show answers as Markdown: `on`, or `off` for raw text.",
    _complete_mode,
)
def markdown(context: Context, argument: str) -> None:
    """Switches Markdown on or off, for later chats too."""
    if argument not in ("", "on", "off"):
        raise UsageError(f"/markdown {argument} is not allowed; write /markdown on or off")
    from mlxchat.cli.settings_file import save_setting

    screen = context.screen
    if argument:
        save_setting("display.markdown", argument == "on")
        if screen is not None:
            screen.markdown = argument == "on"
    is_on = argument == "on" if argument or screen is None else screen.markdown
    context.say(f"Markdown: {'on' if is_on else 'off'}.")


@command("raw", "", "Show the last answer as the model wrote it.")
def raw(context: Context, argument: str) -> None:
    """Shows the last answer as raw text."""
    show = context.say if context.screen is None else context.screen.verbatim
    show(context.last_answer())


@command(
    "theme",
    "[NAME]",
    "Choose the colours; `cb` after it is colour-blind safe.",
    _complete_theme,
)
def theme(context: Context, argument: str) -> None:
    """Shows the themes, or chooses one, for later chats too."""
    from mlxchat.cli.settings_file import save_setting

    if argument:
        name = " ".join(argument.split())
        found = find_theme(name)
        save_setting("display.theme", name)
        if context.screen is not None:
            context.screen.theme = found
        context.say(f"Theme: {name}.")
    else:
        names = [f"{name}{end}" for name in NAMES for end in ("", f" {SUFFIX}")]
        shown = None if context.screen is None else context.screen.theme
        now = "".join(f"Theme: {name}. " for name in names if find_theme(name) == shown)
        context.say(f"{now}Themes: {', '.join(NAMES)}, each also with `{SUFFIX}`.")
