"""Blocks of Markdown to rows of a terminal, with Rich's styles and tables. Imported on use.

What is rendered is untrusted. It has been sanitised before; here every piece of text that the
parser made (it decodes `&#x202e;`) is sanitised once more. Nothing is left out: HTML and link
definitions stay as they were written, and a link shows where it goes.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich.color import ColorSystem
from rich.style import Style

from mlxchat.cli.blocks import Block
from mlxchat.cli.render import sanitize
from mlxchat.cli.theme import Theme
from mlxchat.cli.wrap import Row, Run, fold, is_link, merge, text_width, wrap

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# Above this a block is shown as it was written: parsing it at every token would take too long.
MAX_BLOCK_CHARS = 32_000
# Lines before a line of code that its colours depend on, and the longest line that gets colours.
# The last few are enough where their colours come out as they were with all of them.
CONTEXT_LINES, FEW_LINES, MAX_CODE_CHARS = 60, 6, 2_000
FRAME_WIDTH = 60
_STAR_OPENS, _STAR_CLOSES = re.compile(r"(?<!\S)\*(?=\S)"), re.compile(r"(?<=\S)\*(?![\w*])")
_MIN_WIDTH = 4  # of what stands inside lists and quotes, however deep


@lru_cache(1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return parser.disable(["html_block", "html_inline", "reference"])


class Painter:
    """Turns rows into text with escape sequences.

    Args:
        depth: How many colours there are: a name of Rich's `ColorSystem`; None is no styles.
    """

    def __init__(self, depth: str | None) -> None:
        self._system = None if depth is None else ColorSystem[depth]

    def paint(self, row: Row) -> str:
        """Returns a row as it is written; blanks at its end are left out."""
        runs = [(sanitize(text).replace("\n", " "), style) for text, style in row]
        while runs and not runs[-1][0].rstrip():
            runs.pop()
        if runs:
            runs[-1] = (runs[-1][0].rstrip(), runs[-1][1])
        return "".join(self._paint_run(text, style) for text, style in runs)

    def _paint_run(self, text: str, style: str) -> str:
        if not style.strip() or self._system is None:
            return text
        return _parse_style(style).render(text, color_system=self._system)


@lru_cache(256)
def _parse_style(style: str) -> Style:
    return Style.parse(style)


class MarkdownRenderer:
    """Renders blocks; remembers the code block that it is in.

    Args:
        theme: Colours.
    """

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self._language = ""
        # Lines before, of the code block that is open, and what they became.
        self._code: list[str] = []
        self._code_rows: list[Row] = []

    def render(self, block: Block, width: int, *, is_final: bool) -> list[Row]:
        """Returns the rows of a block.

        Args:
            block: Its `gap` is left to the caller.
            width: Columns of a row; a final line of code, or with a web address, may be longer.
            is_final: The block is finished: what follows comes after it.
        """
        if block.kind == "fence":
            self._language, self._code, self._code_rows = _language_of(block.source), [], []
            return [self._frame(self._language, width)]
        if block.kind == "end":
            return [self._frame("", width)]
        if block.kind == "code":
            return self._render_code_line(block.source, width, is_final=is_final)
        if len(block.source) > MAX_BLOCK_CHARS:
            return wrap([(block.source, "")], width)
        source = block.source if is_final else mend(block.source)
        nodes = SyntaxTreeNode(_parser().parse(source)).children
        rows = _Layout(self._theme, block, keeps_links=is_final).blocks(nodes, width)
        return [
            part
            for row in rows
            for part in ([row] if not row or (is_final and is_link(row)) else fold(row, width))
        ]

    def _frame(self, label: str, width: int) -> Row:
        text = f"── {label} " if label else ""
        room = min(width, FRAME_WIDTH)
        if text_width(text) > room:
            text = ""
        return [(text + "─" * (room - text_width(text)), self._theme.frame)]

    def _render_code_line(self, line: str, width: int, *, is_final: bool) -> list[Row]:
        few, rows_of_few = self._code[-FEW_LINES:], self._code_rows[-FEW_LINES:]
        *before, row = highlight([*few, line], self._language, self._theme)
        if before != rows_of_few:  # in a long string or comment, say
            row = highlight([*self._code, line], self._language, self._theme)[-1]
        if is_final:
            self._code = [*self._code, line][-CONTEXT_LINES:]
            self._code_rows = [*self._code_rows, row][-CONTEXT_LINES:]
            return [_expand(row)]
        return fold(row, width)


def mend(source: str) -> str:
    """Closes the emphasis and the code that the end of an open block has half open."""
    tail = source[source.rfind("\n\n") + 1 :]
    ticks = re.findall("`+", tail)
    if len(ticks) % 2:
        return source.rstrip("`") if tail.endswith("`") else source + ticks[-1]
    bare = tail.rstrip("*~")
    single = bare.replace("**", "")
    is_open = len(_STAR_OPENS.findall(single)) > len(_STAR_CLOSES.findall(single))
    closers = "*" if is_open else ""
    closers += "".join(sign for sign in ("**", "~~") if bare.count(sign) % 2)
    if not closers and tail != bare and (not bare or bare[-1].isspace()):
        return source[: len(source) - len(tail) + len(bare)]  # it has just been opened
    if not closers or (tail != bare and tail.endswith(closers)):
        return source
    return source[: len(source) - len(tail) + len(bare)].rstrip() + closers


def _expand(row: Row) -> Row:
    return [run for rows in fold(row, 1 << 30) for run in rows]


def _language_of(info: str) -> str:
    return (info.split() or [""])[0].strip("{}.,")[:30]


# -- code ------------------------------------------------------------------------------------------


@lru_cache(16)
def _find_lexer(language: str) -> "Lexer | None":
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def highlight(lines: list[str], language: str, theme: Theme) -> list[Row]:
    """Returns lines of code with the styles of their words, one row for each."""
    plain: list[Row] = [merge([(line, "")]) for line in lines]
    lexer = _find_lexer(language.lower()) if language else None
    if lexer is None or max(map(len, lines)) > MAX_CODE_CHARS:
        return plain
    rows: list[Row] = [[]]
    styles: dict[object, str] = {}
    for token, text in lexer.get_tokens("\n".join(lines)):
        first, *rest = text.split("\n")
        style = styles.get(token)
        if style is None:
            style = styles[token] = _code_style(str(token), theme)
        rows[-1].append((first, style))
        rows += [[(part, style)] for part in rest]
    # Some lexers change the text; what the model wrote goes before its colours.
    same = ["".join(text for text, _ in row) for row in rows] == lines
    return [merge(row) for row in rows] if same else plain


def _code_style(token: str, theme: Theme) -> str:
    """Returns the style of a Pygments token such as `Token.Keyword.Constant`."""
    return next((style(theme) for start, style in _CODE_STYLES if token.startswith(start)), "")


# The first that fits is taken.
_CODE_STYLES: tuple[tuple[str, Callable[[Theme], str]], ...] = (
    ("Token.Comment", lambda theme: theme.comment),
    ("Token.Keyword", lambda theme: theme.keyword),
    ("Token.Operator.Word", lambda theme: theme.keyword),
    ("Token.Name.Function", lambda theme: theme.name),
    ("Token.Name.Class", lambda theme: theme.name),
    ("Token.Name.Tag", lambda theme: theme.name),
    ("Token.Name.Attribute", lambda theme: theme.name),
    ("Token.Name.Decorator", lambda theme: theme.name),
    ("Token.Literal.String", lambda theme: theme.string),
    ("Token.Literal.Number", lambda theme: theme.number),
    ("Token.Generic.Inserted", lambda theme: theme.inserted),
    ("Token.Generic.Deleted", lambda theme: theme.deleted),
    ("Token.Generic.Heading", lambda theme: theme.heading),
    ("Token.Generic.Subheading", lambda theme: theme.name),
    ("Token.Error", lambda theme: ""),  # half-written code is full of them
)


# -- text ------------------------------------------------------------------------------------------


class _Layout:
    """Lays out the nodes of one block's syntax tree."""

    def __init__(self, theme: Theme, block: Block, *, keeps_links: bool) -> None:
        self._theme, self._keeps_links = theme, keeps_links
        self._lines = block.source.split("\n")
        self._number = block.number

    def blocks(self, nodes: Iterable[SyntaxTreeNode], width: int) -> list[Row]:
        """Returns the rows of nodes that stand below each other."""
        rows: list[Row] = []
        width = max(width, _MIN_WIDTH)
        for node in nodes:
            if rows and self._has_gap(node):
                rows.append([])
            rows += self._block(node, width)
        return rows

    def _has_gap(self, node: SyntaxTreeNode) -> bool:
        start = node.map[0] if node.map else 0
        return start > 0 and not self._lines[start - 1].strip(" >\t")

    def _block(self, node: SyntaxTreeNode, width: int) -> list[Row]:
        match node.type:
            case "heading":
                return self._wrap(self._inline(node, self._theme.heading), width)
            case "bullet_list" | "ordered_list":
                return self._list(node, width)
            case "blockquote":
                bar: Run = ("│ ", self._theme.frame)
                inside = self.blocks(node.children, width - 2)
                return [[bar, *_styled(row, self._theme.quote)] for row in inside]
            case "fence" | "code_block":
                return self._code(node, width)
            case "table":
                return self._table(node, width)
            case "hr":
                return [[("─" * min(width, FRAME_WIDTH), self._theme.frame)]]
        return self._wrap(self._inline(node, ""), width)

    def _wrap(self, runs: list[Run], width: int) -> list[Row]:
        return wrap(runs, width, keeps_links=self._keeps_links)

    def _list(self, node: SyntaxTreeNode, width: int) -> list[Row]:
        is_ordered = node.type == "ordered_list"
        number = int(node.attrs.get("start", 1))
        if is_ordered and self._number is not None and not (node.map and node.map[0]):
            number = self._number
        rows: list[Row] = []
        for index, item in enumerate(node.children):
            marker = f"{number + index}. " if is_ordered else "• "
            if rows and self._has_gap(item):
                rows.append([])
            inside = self.blocks(item.children, width - len(marker)) or [[]]
            rows.append([(marker, self._theme.marker), *inside[0]])
            rows += [[(" " * len(marker), ""), *row] if row else [] for row in inside[1:]]
        return rows

    def _code(self, node: SyntaxTreeNode, width: int) -> list[Row]:
        renderer = MarkdownRenderer(self._theme)
        lines = node.content.removesuffix("\n").split("\n")
        opening = renderer.render(Block("fence", node.info), width, is_final=True)
        closing = renderer.render(Block("end", ""), width, is_final=True)
        rows = highlight(lines, _language_of(node.info), self._theme)
        return [*opening, *(part for row in rows for part in fold(row, width)), *closing]

    def _table(self, node: SyntaxTreeNode, width: int) -> list[Row]:
        if len(node.children[0].children[0].children) * 4 > width:
            start, end = node.map or (0, 0)  # too many columns to be read side by side
            return wrap([("\n".join(self._lines[start:end]), "")], width)
        cells = [
            [(cell, self._inline(cell, "")) for cell in line.children]
            for part in node.children
            for line in part.children
        ]
        return _render_table(cells, self._theme, width)

    # -- inside a paragraph ------------------------------------------------------------------------

    def _inline(self, node: SyntaxTreeNode, style: str) -> list[Run]:
        runs: list[Run] = []
        for child in node.children:
            runs += self._span(child, style)
        return runs

    def _span(self, node: SyntaxTreeNode, style: str) -> list[Run]:
        match node.type:
            case "softbreak" | "hardbreak":
                return [("\n", "")]
            case "strong" | "em" | "s":
                name = {"strong": "bold", "em": "italic", "s": "strike"}[node.type]
                return self._inline(node, f"{style} {name}")
            case "code_inline":
                return [(node.content, f"{style} {self._theme.code}")]
            case "link":
                return self._with_target(self._inline(node, style), node.attrs["href"], style)
            case "image":
                return self._with_target([(node.content, style)], node.attrs["src"], style)
            case "inline":
                return self._inline(node, style)
        return [(node.content, style)]

    def _with_target(self, runs: list[Run], target: object, style: str) -> list[Run]:
        """Shows where a link goes, always."""
        url = f"{style} {self._theme.link}"
        text = "".join(part for part, _ in runs)
        if str(target) in (text, f"mailto:{text}"):
            return [(text, url)]
        return [*runs, (" (", style), (str(target), url), (")", style)]


def _styled(row: Row, style: str) -> Row:
    return [(text, f"{style} {own}") for text, own in row]


def _render_table(
    cells: list[list[tuple[SyntaxTreeNode, list[Run]]]], theme: Theme, width: int
) -> list[Row]:
    """Lays out a table with Rich; its first line is the head."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style=theme.frame)
    for node, runs in cells[0]:
        side = str(node.attrs.get("style", "")).removeprefix("text-align:")
        head = Text.assemble(*_clean(_styled(runs, theme.heading)))
        table.add_column(
            head, justify="right" if side == "right" else "center" if side == "center" else "left"
        )
        table.columns[-1].overflow = "fold"
    for line in cells[1:]:
        table.add_row(*(Text.assemble(*_clean(runs)) for _, runs in line))
    console = Console(
        width=width, color_system="truecolor", force_terminal=True, legacy_windows=False
    )
    lines = console.render_lines(table, pad=False)
    return [[(part.text, str(part.style or "")) for part in line] for line in lines]


def _clean(runs: list[Run]) -> list[Run]:
    return [(sanitize(text).replace("\t", "    "), style.strip()) for text, style in runs]
