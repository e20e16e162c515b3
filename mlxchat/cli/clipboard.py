"""Text to the clipboard: through the terminal (OSC 52), and through a program of the system."""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable

from mlxchat.errors import MlxchatError, UsageError

# Some terminals throw longer sequences away without a word.
MAX_OSC_BYTES = 100_000
_TIMEOUT_S = 2.0
# A command, and the variable without which it has no clipboard.
_TOOLS = (
    (("pbcopy",), None),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
_FENCE = re.compile(r"( {0,3}(?:[-*+]|\d+[.)])? *)(`{3,}|~{3,})([^\n]*)")


def find_code_blocks(text: str) -> list[str]:
    """Returns what stands in the fenced code blocks of a Markdown text, in their order.

    A block that the text does not end goes to its end.
    """
    blocks: list[str] = []
    lines: list[str] | None = None
    fence, indent = "", 0
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line.rstrip("\r"))
        if lines is None:
            if match and not ("`" in match[2] and "`" in match[3]):
                lines, fence, indent = [], match[2], len(match[1])
        elif (
            match
            and match[2][0] == fence[0]
            and len(match[2]) >= len(fence)
            and not match[3].strip()
        ):
            blocks.append("\n".join(lines))
            lines = None
        else:
            num_blanks = len(line) - len(line.lstrip(" "))
            lines.append(line[min(indent, num_blanks) :])
    if lines is not None:
        blocks.append("\n".join(lines))
    return blocks


def pick(answer: str, what: str) -> tuple[str, str]:
    """Returns the part of an answer that `/copy` names, and its name.

    Args:
        answer: Raw text.
        what: Empty for all of it, `code` for all code, or the number of a code block.

    Raises:
        UsageError: There is no such part.
    """
    if not what:
        return answer, "the answer"
    blocks = find_code_blocks(answer)
    is_number = what.isascii() and what.isdigit()
    if what != "code" and not is_number:
        raise UsageError(f"/copy {what} is not allowed; write /copy, /copy code or /copy N")
    if not blocks:
        raise UsageError("the last answer has no code block; /copy copies all of it")
    if what == "code":
        return "\n\n".join(blocks), "the code"
    if not 1 <= int(what) <= len(blocks):
        raise UsageError(f"there is no code block {what}; give 1 to {len(blocks)}")
    return blocks[int(what) - 1], f"code block {what}"


def make_osc_52(text: str) -> str | None:
    """Returns the sequence that hands a text to the terminal's clipboard; None when too long.

    GNU screen passes it on only in an envelope; tmux knows it.
    """
    data = base64.b64encode(text.encode(errors="replace")).decode()
    if len(data) > MAX_OSC_BYTES:
        return None
    sequence = f"\x1b]52;c;{data}\x07"
    return (
        f"\x1bP{sequence}\x1b\\"
        if os.environ.get("TERM", "").startswith("screen") and not os.environ.get("TMUX")
        else sequence
    )


def copy(text: str, send: Callable[[str], bool]) -> None:
    """Copies a text wherever it can.

    Args:
        text: What is copied.
        send: Writes an escape sequence to the terminal; returns False where there is none.

    Raises:
        MlxchatError: Neither the terminal nor a program took it.
    """
    sequence = make_osc_52(text)
    was_sent = sequence is not None and send(sequence)
    if not _run_tool(text) and not was_sent:
        why = "the text is too long for the terminal" if sequence is None else "no clipboard"
        raise MlxchatError(f"{why}; install wl-copy or xclip, or save it with /export")


def _run_tool(text: str) -> bool:
    for command, variable in _TOOLS:
        if (variable is None or os.environ.get(variable)) and shutil.which(command[0]):
            try:
                # Its output goes nowhere: some stay in the background and would keep a pipe open.
                done = subprocess.run(
                    command,
                    input=text.encode(errors="replace"),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_TIMEOUT_S,
                    check=False,
                )
            except (OSError, subprocess.SubprocessError):
                continue
            if done.returncode == 0:
                return True
    return False
