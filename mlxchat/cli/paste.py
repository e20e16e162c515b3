"""Large pastes as chips: a label on the screen, the whole text when sent.

In the line a chip is one private-use character, so every editing key treats it as one piece.
"""

from collections.abc import Callable

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments

from mlxchat.cli.render import format_count

# A paste that is larger than this hides the line that is being written.
MAX_LINES, MAX_CHARS = 10, 1000
# The end of the last private-use plane: no font and no program that we know of uses it.
_FIRST, _LAST = 0x10F000, 0x10FFFD
STYLE = "reverse"


class Pastes:
    """The chips of this chat."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def take(self, text: str) -> str:
        """Returns what a paste puts into the line: its text, or a chip when it is large."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        num_lines = text.count("\n") + (not text.endswith("\n"))
        if num_lines <= MAX_LINES and len(text) <= MAX_CHARS:
            return text
        code = _FIRST + len(self._texts)
        while chr(code) in text or chr(code) in self._texts:
            code += 1
        if code > _LAST:
            return text
        self._texts[chr(code)] = text
        return chr(code)

    def is_chip(self, character: str) -> bool:
        """Returns whether a character stands for a paste."""
        return character in self._texts

    def label(self, chip: str) -> str:
        """Returns what the screen shows for a chip: `[pasted 42 lines]`."""
        text = self._texts[chip]
        num_lines = text.count("\n") + (not text.endswith("\n"))
        if num_lines > MAX_LINES:
            return f"[pasted {format_count(num_lines)} lines]"
        return f"[pasted {format_count(len(text))} characters]"

    def expand(self, text: str) -> str:
        """Returns the text with every chip replaced by what was pasted."""
        return self._replace(text, lambda chip: self._texts[chip])

    def shown(self, text: str) -> str:
        """Returns the text with every chip replaced by its label."""
        return self._replace(text, self.label)

    def find(self, text: str, cursor: int) -> int | None:
        """Returns where the chip is that the cursor stands on or directly behind."""
        for place in (cursor, cursor - 1):
            if 0 <= place < len(text) and text[place] in self._texts:
                return place
        return None

    def _replace(self, text: str, make: Callable[[str], str]) -> str:
        if self._texts.keys().isdisjoint(text):
            return text
        return "".join(make(c) if c in self._texts else c for c in text)


class PasteParser(Vt100Parser):
    """Takes pastes as they come, in pieces of a kilobyte, and puts them together once.

    prompt-toolkit looks through all that came for the end of the paste at every piece: a megabyte
    took it two seconds, five a minute.
    """

    _END = "\x1b[201~"

    def __init__(self, feed_key: Callable[[KeyPress], None]) -> None:
        super().__init__(feed_key)
        self._pieces: list[str] = []
        self._last = ""  # of what came, where half an end may stand

    def feed(self, data: str) -> None:
        """Takes what was typed or pasted."""
        if self._in_bracketed_paste:
            self._pieces.append(data)
            seen = self._last + data
            if self._END not in seen:
                self._last = seen[1 - len(self._END) :]
                return
            data, self._last = "".join(self._pieces), ""
            self._pieces.clear()
        super().feed(data)


def speed_up_pastes(keyboard: Input) -> None:
    """Has a terminal's keyboard take large pastes quickly; called before anything is read."""
    if isinstance(keyboard, Vt100Input):
        keyboard.vt100_parser = PasteParser(keyboard.vt100_parser.feed_key_callback)


class ChipProcessor(Processor):
    """Draws the labels of chips in a prompt."""

    def __init__(self, pastes: Pastes) -> None:
        self._pastes = pastes

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Replaces chips by labels and says which column became which."""
        pastes, fragments = self._pastes, explode_text_fragments(transformation_input.fragments)
        if not any(pastes.is_chip(fragment[1]) for fragment in fragments):
            return Transformation(fragments)
        drawn: StyleAndTextTuples = []
        columns: list[int] = []  # where each character of the source is drawn
        column = 0
        for style, character, *_ in fragments:
            columns.append(column)
            is_chip = pastes.is_chip(character)
            text = pastes.label(character) if is_chip else character
            drawn.append((f"{style} {STYLE}" if is_chip else style, text))
            column += len(text)

        def to_display(position: int) -> int:
            return (
                columns[position] if position < len(columns) else column + position - len(columns)
            )

        def to_source(position: int) -> int:
            if position >= column:
                return len(columns) + position - column
            return max(i for i, start in enumerate(columns) if start <= position)

        return Transformation(drawn, to_display, to_source)
