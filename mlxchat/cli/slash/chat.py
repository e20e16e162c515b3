"""The slash commands about the chat itself: help and the way out."""

import textwrap
from collections.abc import Iterable

from mlxchat.cli.failures import LeaveChat
from mlxchat.cli.slash.elsewhere import ALIASES
from mlxchat.cli.slash.registry import COMMANDS, Context, command, find
from mlxchat.cli.slash.registry import Command as Entry

# As they stand in the README.
KEYS = (
    ("Enter", "Sends."),
    (
        "Alt-Enter, Ctrl-J",
        "Adds a line; in vi mode Ctrl-J alone. So do Shift-Enter, where the terminal tells it"
        " apart, and a `\\` at the end of the message with Enter.",
    ),
    (
        "Tab",
        "Completes commands, their arguments, models, and paths after `@` and `/file`. On a chip it"
        " expands it.",
    ),
    ("Ctrl-X Ctrl-P", "Expands the chip at the cursor, or all."),
    ("Ctrl-X Ctrl-E", "Opens the draft in `$VISUAL` or `$EDITOR`."),
    (
        "Up, Down, Ctrl-R",
        "Recall and search what was sent before. Right takes the grey suggestion.",
    ),
    ("Ctrl-O", "Shows the thinking behind the last answer."),
    ("Ctrl-T", "During an answer: ends the thinking and asks for the answer."),
    (
        "Ctrl-C",
        "Stops the answer or the command and keeps the chat; at the prompt it clears the line,"
        " pressed again it leaves.",
    ),
    (
        "Esc",
        "Stops the answer like Ctrl-C. During an answer all other keys wait for the next prompt.",
    ),
    (
        "Ctrl-Z",
        "Stops the program, also in the middle of an answer; `fg` in the shell goes on with it.",
    ),
    ("Ctrl-D", "Leaves."),
)
LAST_LINES = (
    'In a message: @path puts a file in, """ begins and ends a block of lines.',
    "A line !cmd runs a command and attaches its output.",
    "/help keys lists the keys. //word sends /word as text; /a/path is text anyway.",
)
# What `/help NAME` shows of a command besides its summary.
EXAMPLES = {
    "system": (
        "/system Answer in one sentence.",
        "/system @reviewer: one that has a name in the settings",
    ),
    "retry": ("/retry 3: three answers to choose from",),
    "continue": ("After Ctrl-C, a token limit or a full context.",),
    "compact": ("/compact 4: the newest four turns stay as they are",),
    "undo": ("/undo 2: the last two turns; /tree and /goto bring them back",),
    "edit": (
        "/edit 2 What is a cat?: another second message; the old branch stays in /tree",
        "/edit 2: the second message comes into the prompt, to be changed",
    ),
    "goto": ("/tree shows the numbers",),
    "save": ("/save trip to Oslo",),
    "resume": (
        "/resume 12",
        "/resume oslo: the one whose title has the word",
        "/resume talk.json: one that was exported",
    ),
    "search": ('/search cache "read twice": messages with the word and the phrase',),
    "export": ("/export talk.md", "/export ~/talk.json: /resume takes it up again"),
    "model": ("/model mlx-community/Qwen3-4B-4bit", "/model ~/models/mine"),
    "show": ("/show template: how messages become a prompt",),
    "adapter": ("/adapter ~/adapters/tone", "/adapter show: rank, size, what it was trained on"),
    "schema": (
        "/schema person.json: JSON of this schema",
        "/schema any: any JSON object",
        "/schema regex (yes|no)[.]",
        "/schema grammar moves.lark",
    ),
    "think": ("/think budget 200: the answer begins after 200 tokens of thinking",),
    "set": ("/set temp 0.2", "/set temp: what is in force", "/set temp default"),
    "theme": ("/theme dark cb",),
    "tokens": ("/tokens unbelievable",),
    "file": (
        "/file notes.txt",
        "/file 'src/**/*.py': all that match",
        "/file src: the text files in a folder",
    ),
    "copy": ("/copy code: the code of the answer", "/copy 2: its second code block"),
    "drop": ("/drop 2: the second attachment",),
    "steer": ("/steer capitals 1",),
    "why": ("/why Oslo",),
    "lens": ("/lens Oslo",),
    "attention": ("/attention Oslo",),
}
_NARROW = 60  # below this usage and summary stand under each other


def _complete_name(start: str) -> list[tuple[str, str]]:
    found = [(name, entry.summary) for name, entry in COMMANDS.items()]
    return [pair for pair in (*found, ("keys", "the keys")) if pair[0].startswith(start)]


@command("help", "[NAME]", "List the commands, explain one, or list the `keys`.", _complete_name)
def help_(context: Context, argument: str) -> None:
    """Lists the commands, explains one, or lists the keys."""
    name, columns = argument.lower().removeprefix("/"), context.width
    if name in ("keys", "shortcuts"):
        context.say(format_entries(KEYS, columns))
    elif name:
        context.say(explain(find(name), columns))
    else:
        entries = format_entries([(e.usage, e.summary) for e in COMMANDS.values()], columns)
        lines = [row for line in LAST_LINES for row in textwrap.wrap(line, columns)]
        context.say("\n".join([entries, *lines]))


def format_entries(entries: Iterable[tuple[str, str]], columns: int) -> str:
    """Returns names and what they do in two columns."""
    entries = list(entries)
    width = max(len(name) for name, _ in entries)
    return "\n".join(format_entry(name, text, width, columns) for name, text in entries)


def format_entry(usage: str, summary: str, width: int, columns: int) -> str:
    """Returns a command and what it does, broken between words.

    Args:
        usage: How it is written.
        summary: What it does.
        width: Columns for the usages.
        columns: Of the screen.
    """
    line = f"{usage:<{width}}  {summary}"
    if len(line) <= columns:
        return line
    if columns < _NARROW:
        rows = textwrap.wrap(summary, columns - 2, break_on_hyphens=False)
        return "\n".join([usage, *(f"  {row}" for row in rows)])
    first, *rest = textwrap.wrap(summary, columns - width - 2, break_on_hyphens=False)
    return "\n".join([f"{usage:<{width}}  {first}", *(" " * (width + 2) + row for row in rest)])


def explain(entry: Entry, columns: int) -> str:
    """Returns what there is to say about one command."""
    lines = [entry.usage, *textwrap.wrap(entry.summary, columns)]
    also = [f"/{name}" for name, target in ALIASES.items() if target == entry.name]
    if also:
        lines.append(f"Also: {', '.join(also)}")
    values = entry.complete("") if entry.complete is not None else []
    words = ", ".join(value.strip() for value, _ in values[:20])
    lines += textwrap.wrap(f"Tab offers: {words}", columns) if words else []
    if entry.name == "set":
        from mlxchat.cli.parameters import NAMES

        lines += textwrap.wrap(f"Names: {', '.join(NAMES)}", columns, break_on_hyphens=False)
    if entry.takes_message:
        lines.append("@path in its text puts a file into it.")
    for example in EXAMPLES.get(entry.name, ()):
        lines += textwrap.wrap(f"  {example}", columns, subsequent_indent="    ")
    return "\n".join(lines)


@command("exit", "", "Leave the chat; Ctrl-D does the same.")
def exit_(context: Context, argument: str) -> None:
    """Leaves the chat."""
    raise LeaveChat
