"""Several answers to one question: shown with their numbers, and the choice between them."""

from typing import TYPE_CHECKING

from mlxchat.cli.render import format_tokens, sanitize
from mlxchat.cli.wrap import wrap

if TYPE_CHECKING:
    from mlxchat.chat.results import Alternatives, TurnResult
    from mlxchat.chat.session import Session
    from mlxchat.cli.screen import Screen

# Rows of each answer that are shown before the choice; the chosen one is then shown whole.
PREVIEW_ROWS = 6


def format_preview(number: int, result: "TurnResult", width: int) -> str:
    """Returns the beginning of an answer under its number.

    Args:
        number: Counted from 1.
        result: The answer.
        width: Columns of the terminal.
    """
    rows = preview_rows(result, width)
    left = len(rows) - PREVIEW_ROWS
    more = [f"... {left} more {'row' if left == 1 else 'rows'}"] if left > 0 else []
    head = f"[{number}] {format_tokens(result.usage.completion_tokens)}"
    return "\n".join([head, *rows[:PREVIEW_ROWS], *more])


def preview_rows(result: "TurnResult", width: int) -> list[str]:
    """Returns an answer as rows of plain text; thinking stands for an answer that never came."""
    text = result.text.strip("\n") or (result.reasoning or "").strip("\n") or "(nothing)"
    lines = sanitize(text).expandtabs(4).split("\n")
    return ["".join(part for part, _ in row) for line in lines for row in wrap([(line, "")], width)]


def ask_which(session: "Session", offered: "Alternatives", screen: "Screen", width: int) -> None:
    """Lets the person choose; Enter takes the first, Ctrl-C and Ctrl-D the answer before.

    Args:
        session: Gave the answers.
        offered: The answers; they have been shown.
        screen: Where the chosen one is shown whole.
        width: Columns of the terminal.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.validation import Validator

    count = len(offered.results)

    def is_number(text: str) -> bool:
        text = text.strip()
        return not text or (text.isascii() and text.isdigit() and 1 <= int(text) <= count)

    validator = Validator.from_callable(is_number, f"type a number from 1 to {count}", True)
    prompt: PromptSession[str] = PromptSession(validator=validator, validate_while_typing=False)
    others = "the old answer stays" if offered.old is not None else "the first one stays"
    try:
        number = int(prompt.prompt(f"Which one? 1-{count} (Enter: 1, Ctrl-C: {others}): ") or 1)
    except (KeyboardInterrupt, EOFError):
        session.choose(offered, 0)
        screen.note(f"{others.capitalize()}; /tree shows the others.")
        return
    session.choose(offered, number)
    chosen = offered.results[number - 1]
    if len(preview_rows(chosen, width)) > PREVIEW_ROWS:
        screen.answer(chosen.text)
        screen.end_line()
    screen.note(f"Answer {number} it is; /tree shows the others.")
