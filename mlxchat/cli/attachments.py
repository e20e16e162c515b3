"""What goes into the next message beside its text: files and the output of commands.

`@path` in a message names a file; `files` reads it, `shell` runs commands. Attached texts stand in
fences before the message, each with its name, as `chat/attached.py` tells them apart again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from mlxchat.chat.attached import split_attached
from mlxchat.cli.files import MAX_KIB, TextFile, exists, find_files, is_folder
from mlxchat.cli.render import format_bytes, format_count, one_line
from mlxchat.errors import AttachError

# `@` at the start of a word: then `@` (a plain one), a quoted path, or a path to the next blank,
# where a blank can be written `\ `.
_REFERENCE = re.compile(
    r"""(?:(?<=[\s(\[{])|^)@(?:(?P<escape>@)|"(?P<double>[^"\n]+)"|'(?P<single>[^'\n]+)'"""
    r"""|(?P<plain>(?:\\\ |[^\s@"'])(?:\\\ |\S)*))""",
    re.MULTILINE,
)
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)
_AFTER_PATH = ".,;:!?)]}>\"'"
# What is written like a path and is none gets an error; other words after an `@` are text.
_LIKE_A_PATH = re.compile(r"(?=.*/|[.~]|.*\.[A-Za-z]\w{0,3}$)[\w./~+\\ -]+")
_PATTERN = re.compile(r"[./].*\*|\*.*[./]")
MAX_DESCRIBED = 12  # more files of one name are described together
_BYTES_PER_TOKEN = 4  # of English text, in most tokenizers
CountTokens = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text with its name.

    Attributes:
        name: The file as it was named, or the command.
        text: What the model gets.
        size: Bytes of the file or of all that the command wrote.
        status: How a command ended; None for a file.
    """

    name: str
    text: str
    size: int
    status: str | None = None

    def format_block(self) -> str:
        """Returns what stands in the message: the name, then the text in a fence."""
        runs = re.findall(r"^\s*(`{3,})", self.text, re.MULTILINE)
        fence = "`" * (1 + max((len(run) for run in runs), default=2))
        if self.status is None:
            suffix = re.search(r"\.([A-Za-z0-9]+)$", self.name)
            head, language = f"{self.name}:", suffix[1] if suffix else ""
        else:
            head, language = f"Output of `{self.name}` ({self.status}):", ""
        line_end = "" if not self.text or self.text.endswith("\n") else "\n"
        return f"{head}\n{fence}{language}\n{self.text}{line_end}{fence}"

    def describe(self, count_tokens: CountTokens) -> str:
        """Returns its name, size and tokens in one line for the person."""
        name = one_line(self.name)
        name = name if len(name) <= 40 else f"{name[:39]}…"
        name = name if self.status is None else f"$ {name} ({self.status})"
        return f"{name}, {format_bytes(self.size)}, {format_tokens(self.text, count_tokens)}"


def describe_all(name: str, made: list[Attachment], count_tokens: CountTokens) -> list[str]:
    """Returns what to say of the files that a name stands for; of many only how many they are."""
    if len(made) <= MAX_DESCRIBED:
        return [f"Attached {attachment.describe(count_tokens)}." for attachment in made]
    size = format_bytes(sum(attachment.size for attachment in made))
    tokens = format_tokens("".join(attachment.text for attachment in made), count_tokens)
    return [f"Attached {len(made)} files of {one_line(name)}, {size}, {tokens}."]


def format_tokens(text: str, count_tokens: CountTokens) -> str:
    """Returns the number of tokens of a text; an estimate where nothing can count them yet."""
    count = count_tokens(text)
    if count is not None:
        return f"{format_count(count)} tokens"
    return f"≈ {format_count(-(-len(text.encode(errors='replace')) // _BYTES_PER_TOKEN))} tokens"


def format_own_words(message: str) -> str:
    """Returns a message in one line, with a number in the place of what is attached."""
    _, own, names = split_attached(message)
    return one_line(f"[{len(names)} attached] {own}" if names else own)


class Reference(NamedTuple):
    """A place in a message where `@` names a file.

    Attributes:
        start, end: Where it stands, the `@` included.
        path: The path without quotes; `@` for an escaped `@@`.
        is_quoted: Whether it is in quotes, so that nothing after it can belong to the text.
    """

    start: int
    end: int
    path: str
    is_quoted: bool


def find_references(text: str) -> list[Reference]:
    """Finds the places where `@` may name a file.

    An `@` inside a word (an e-mail address) or inside a fenced block is text.
    """
    fences = [match.span() for match in _FENCED.finditer(text)]
    found = []
    for match in _REFERENCE.finditer(text):
        if any(start <= match.start() < end for start, end in fences):
            continue
        quoted = match["double"] or match["single"]
        path = match["escape"] or quoted or match["plain"].replace("\\ ", " ")
        found.append(Reference(*match.span(), path, quoted is not None))
    return found


@dataclass(slots=True)
class Attachments:
    """What waits for the next message.

    Attributes:
        max_bytes: The most that one file, or the files of one pattern, may have.
        pending: In the order in which they were attached.
    """

    max_bytes: int = MAX_KIB * 1024
    pending: list[Attachment] = field(default_factory=list)
    _in_message: list[Attachment] = field(default_factory=list)

    def add(self, attachment: Attachment) -> None:
        """Attaches a text; the same file again takes the place of the old one."""
        if attachment.status is None:
            self.pending = [
                old for old in self.pending if (old.name, old.status) != (attachment.name, None)
            ]
        self.pending.append(attachment)

    def add_files(self, name: str, count_tokens: CountTokens) -> list[str]:
        """Attaches the files of a path or pattern; returns what to say.

        Raises:
            AttachError: They cannot be attached; nothing has changed.
        """
        found = find_files(name, self.max_bytes)
        made = [_attach(file) for file in found.files]
        for attachment in made:
            self.add(attachment)
        return [*describe_all(name, made, count_tokens), *found.notices]

    def drop(self, number: int | None = None) -> list[Attachment]:
        """Discards everything, or the attachment of a number counted from 1; returns it.

        Raises:
            AttachError: There is nothing, or no such number.
        """
        if not self.pending:
            raise AttachError("nothing is attached; @path, /file and !cmd attach")
        if number is None:
            dropped, self.pending = self.pending, []
            return dropped
        if not 1 <= number <= len(self.pending):
            raise AttachError(f"there is no attachment {number}; give 1 to {len(self.pending)}")
        return [self.pending.pop(number - 1)]

    def describe(self) -> str:
        """Returns what is attached in a few words for the toolbar, or nothing."""
        if not self.pending:
            return ""
        size = format_bytes(sum(attachment.size for attachment in self.pending))
        names = [
            one_line(a.name) if a.status is None else f"$ {one_line(a.name)}" for a in self.pending
        ]
        shown = ", ".join(name if len(name) <= 24 else f"{name[:23]}…" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"attached: {shown}{more} ({size})"

    # -- the message -------------------------------------------------------------------------------

    def compose(
        self,
        text: str,
        count_tokens: CountTokens,
        say: Callable[[str], None],
        *,
        is_literal: bool = False,
    ) -> str:
        """Returns the message with what is attached and what its `@` name.

        Args:
            text: What the person wrote.
            count_tokens: Counts a text's tokens, or returns None.
            say: Shows a line.
            is_literal: An `@` is text.

        Raises:
            AttachError: A file cannot be attached; nothing has changed.
        """
        lines: list[str] = []
        named: list[Attachment] = []
        if not is_literal:
            text, named = self._read_references(text, count_tokens, lines)
        for line in lines:
            say(line)
        names = {attachment.name for attachment in named}
        self._in_message = list(self.pending)
        waiting = [a for a in self.pending if a.status is not None or a.name not in names]
        blocks = [attachment.format_block() for attachment in (*waiting, *named)]
        return "\n\n".join([*blocks, text])

    def _read_references(
        self, text: str, count_tokens: CountTokens, lines: list[str]
    ) -> tuple[str, list[Attachment]]:
        """Returns the text with the plain names of its files, and the files."""
        named: dict[str, Attachment] = {}
        pieces: list[str] = []
        end = 0
        for reference in find_references(text):
            path = _resolve(reference, lines)
            pieces.append(text[end : reference.start])
            end = reference.end
            if path is None:
                is_escape = reference.path == "@"
                pieces.append("@" if is_escape else text[reference.start : end])
                continue
            rest = reference.path[len(path) :]
            pieces.append(f'"{path}"{rest}' if " " in path else f"{path}{rest}")
            found = find_files(path, self.max_bytes)
            new = [_attach(file) for file in found.files if file.name not in named]
            named |= {attachment.name: attachment for attachment in new}
            lines += describe_all(path, new, count_tokens)
            lines += found.notices
        return "".join([*pieces, text[end:]]), list(named.values())

    def begin(self) -> None:
        """Forgets what the last message took; called before each line is understood."""
        self._in_message = []

    def sent(self) -> None:
        """Takes away what was in the message; called when it has its answer."""
        self.pending = [
            a for a in self.pending if not any(a is taken for taken in self._in_message)
        ]
        self._in_message = []


def _attach(file: TextFile) -> Attachment:
    return Attachment(file.name, file.text, file.size)


def _check_slash(path: str) -> None:
    """Raises where a folder is named without a slash at its end: the word may be a name."""
    if is_folder(path) and "/" not in path:
        raise AttachError(
            f"{path} is a folder; write @{path}/ to attach its files, or @@{path} to send it as"
            " text"
        )


def _resolve(reference: Reference, lines: list[str]) -> str | None:
    """Returns the path or pattern that a reference names; None where it is text.

    Punctuation after a path belongs to the sentence, unless a file has it in its name.

    Raises:
        AttachError: It is written like a path, but there is no such file.
    """
    path = reference.path
    if path == "@":
        return None
    shortest = path if reference.is_quoted else path.rstrip(_AFTER_PATH) or path
    for end in range(len(path), len(shortest) - 1, -1):
        if exists(path[:end]):
            _check_slash(path[:end])
            return path[:end]
    if _PATTERN.search(shortest):
        return shortest
    if reference.is_quoted or _LIKE_A_PATH.fullmatch(shortest):
        hint = "" if reference.is_quoted else f", or write @@{shortest} to send it as text"
        try:
            find_files(shortest, 1)
        except AttachError as error:
            raise AttachError(f"{error}{hint}") from None
    lines.append(f"There is no file {one_line(shortest)}; @{one_line(shortest)} is text.")
    return None
