"""The slash commands that move in the conversation, or keep it."""

import contextlib
from typing import TYPE_CHECKING

from mlxchat.cli.options import MOST_ANSWERS
from mlxchat.cli.render import format_count, one_line
from mlxchat.cli.resume import conversation_names
from mlxchat.cli.slash.registry import (
    Context,
    command,
    need_turns,
    need_turns_ever,
    say_cost,
    whole_number,
)
from mlxchat.errors import MlxchatError, SettingsError, UsageError
from mlxchat.settings import find_system, load_settings

if TYPE_CHECKING:
    from mlxchat.cli.turn import Start


def _complete_system(start: str) -> list[tuple[str, str]]:
    words = {"none": "no system prompt"}
    with contextlib.suppress(SettingsError):
        words |= {f"@{name}": text for name, text in load_settings().systems.items()}
    return [(word, one_line(text)[:40]) for word, text in words.items() if word.startswith(start)]


@command(
    "system",
    "[TEXT]",
    "Show or set the system prompt: a text, `@name` or `none`.",
    _complete_system,
)
def system(context: Context, argument: str) -> None:
    """Shows or sets the system prompt."""
    if argument:
        text = None if argument == "none" else find_system(argument, load_settings())
        context.session.set_system(text)
    prompt = context.session.system
    context.say("No system prompt." if prompt is None else f"System prompt: {prompt}")
    if argument:
        say_cost(context)


@command("reset", "", "Empty the conversation; the system prompt stays.")
def reset(context: Context, argument: str) -> None:
    """Empties the conversation."""
    context.session.reset()
    context.say("The conversation is empty.")


@command("retry", "[N]", "Answer the last message again, or N times to choose from.")
def retry(context: Context, argument: str) -> "Start":
    """Answers the last message again, once or several times."""
    count = whole_number(argument, "/retry [N]") if argument else 1
    if not 1 <= count <= MOST_ANSWERS:
        raise UsageError(f"{count} answers are not allowed; give a number from 1 to {MOST_ANSWERS}")
    session = context.session
    need_turns(session)
    return session.retry if count == 1 else lambda: session.retry_many(count)


@command("continue", "", "Go on with an answer that was cut off.")
def continue_(context: Context, argument: str) -> "Start":
    """Goes on with the last answer."""
    need_turns(context.session)
    return context.session.go_on


NUM_KEPT = 2


@command("compact", "[N]", "Have the oldest turns summarised; the newest N, or 2, stay.")
def compact(context: Context, argument: str) -> None:
    """Puts a summary in the place of the oldest turns."""
    from mlxchat.cli.turn import follow

    num_kept = whole_number(argument, "/compact [N]") if argument else NUM_KEPT
    need_turns(context.session)
    done = follow(lambda: context.session.compact(num_kept), context.screen)
    which = "Turn 1 is" if done.num_turns == 1 else f"Turns 1 to {done.num_turns} are"
    context.say(f"{which} now this summary:")
    show = context.say if context.screen is None else context.screen.verbatim
    show(done.summary.strip("\n"))
    context.say(
        f"The conversation took {format_count(done.num_before)} tokens and takes"
        f" {format_count(done.num_after)}; /goto {done.old_head} brings all of it back."
    )


@command("undo", "[N]", "Take back the last turn, or the last N.")
def undo(context: Context, argument: str) -> None:
    """Takes turns back."""
    count = whole_number(argument, "/undo [N]") if argument else 1
    need_turns(context.session)
    taken = context.session.undo(count)
    context.say(f"Took back {taken} {'turn' if taken == 1 else 'turns'}.")


@command(
    "edit",
    "[TURN] TEXT",
    "Rewrite your last message, or turn TURN's, and answer it.",
    takes_message=True,
)
def edit(context: Context, argument: str) -> "Start | None":
    """Replaces the text of a turn and answers it; without a text it can be written anew."""
    first, _, rest = argument.partition(" ")
    turn = int(first) if first.isascii() and first.isdigit() else None
    text = argument if turn is None else rest.strip()
    if not text and context.redraft is None:
        raise UsageError("there is no new text; write /edit [TURN] TEXT")
    need_turns(context.session)
    if turn is not None and not 1 <= turn <= context.session.num_turns:
        raise UsageError(f"there is no turn {turn}; give 1 to {context.session.num_turns}")
    if not text and context.redraft is not None:
        from mlxchat.chat.attached import split_attached

        attached, own, _ = split_attached(context.session.question_text(turn))
        context.redraft("/edit " if turn is None else f"/edit {turn} ", attached, own)
        return None
    message = context.message(text)
    return lambda: context.session.edit(turn, message)


@command("fork", "", "Start another branch here; /goto comes back to this place.")
def fork(context: Context, argument: str) -> None:
    """Starts another branch."""
    need_turns(context.session)
    number = context.session.fork()
    context.say(f"From here the conversation branches; /goto {number} comes back to this place.")


@command("tree", "", "Draw the branches of the conversation.")
def tree(context: Context, argument: str) -> None:
    """Draws the branches."""
    from mlxchat.cli.render_views import format_tree

    need_turns_ever(context.session)
    context.say(format_tree(context.session.tree(), context.width))


@command("goto", "N", "Go to message N of the tree, on whatever branch.")
def goto(context: Context, argument: str) -> None:
    """Goes to a message."""
    number = whole_number(argument, "/goto N")
    turns = context.session.goto(number)
    context.say(f"At message {number}, after {turns} {'turn' if turns == 1 else 'turns'}.")


@command("title", "[TEXT]", "Show the conversation's title, or set it.")
def title(context: Context, argument: str) -> None:
    """Shows or sets the title."""
    if argument:
        context.session.set_title(argument)
    name = context.session.title
    context.say(f"Title: {name}" if name else "No title; the first message stands for it.")


@command("save", "TITLE", "Keep the chat under a title, also after --no-history.")
def save(context: Context, argument: str) -> None:
    """Names the conversation, and keeps it where it was not kept so far."""
    if not argument:
        raise UsageError("there is no title; write /save TITLE")
    number = context.session.save(argument)
    context.say(f"Saved as {number}; mlxchat chat --resume {number} goes on with it.")


@command("search", "WORDS", "Find messages in all conversations that have all WORDS.")
def search(context: Context, argument: str) -> None:
    """Finds words in the history."""
    import shlex

    from mlxchat.cli.render_history import format_hits
    from mlxchat.cli.resume import search_history

    try:
        words = shlex.split(argument)
    except ValueError:  # a quotation mark alone
        words = argument.split()
    if not any(word.strip() for word in words):
        raise UsageError("there is no word to search for; write /search WORDS")
    found = search_history(words)
    if found.notice:
        context.say(found.notice)
    if found.hits:
        context.say(format_hits(found.hits, is_styled=False) + "\n/resume ID goes on with one.")
    else:
        context.say("Nothing was found.")


@command(
    "resume",
    "[ID|FILE]",
    "Go on with another conversation, or list them.",
    conversation_names,
)
def resume(context: Context, argument: str) -> None:
    """Takes a conversation of the history up again, or one that was exported."""
    from mlxchat.cli.render_history import format_restored
    from mlxchat.cli.resume import find_conversation, list_conversations

    restored = find_conversation(argument or None)
    if restored is None:
        context.say(f"{list_conversations()}\n/resume ID goes on with one.")
        return
    context.session.restore(restored)
    context.say(format_restored(restored))
    say_cost(context)


@command("export", "[FILE]", "Write the conversation to FILE: .md, .json, .jsonl or .html.")
def export(context: Context, argument: str) -> None:
    """Writes the conversation to a file that does not exist yet."""
    from pathlib import Path

    from mlxchat.chat.export import format_export
    from mlxchat.cli.history import read_format
    from mlxchat.cli.render import sanitize

    need_turns_ever(context.session)
    if argument == "-":
        raise UsageError(
            "- is no file name here; name a file, or write mlxchat history export in a shell"
        )
    form = read_format(None, argument)
    record = context.session.record()
    file = Path(argument or f"conversation-{record.summary.id or 'unkept'}.md").expanduser()
    text = format_export([record], form, sanitize)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise MlxchatError(f"{file} exists; write /export FILE with another name") from None
    context.say(f"Wrote {file}.")
