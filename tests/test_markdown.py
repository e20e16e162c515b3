"""Markdown on the screen: what each construct looks like, and that streaming changes nothing."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtual_terminal import OWN, VirtualTerminal, cut, drawable, show

from mlxchat.cli import markdown
from mlxchat.cli.blocks import Block, BlockSplitter, cut_table
from mlxchat.cli.markdown import MarkdownRenderer, Painter, mend
from mlxchat.cli.render import sanitize
from mlxchat.cli.streams import is_plain
from mlxchat.cli.theme import find_theme
from mlxchat.cli.wrap import fold, text_width, wrap

FRAME = "─" * 39


def screen_of(text, **size):
    return "\n".join(show(text, **size).rows)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("# One\n## Two ##\ntext", "One\nTwo\ntext"),
        ("Title\n=====\n\ntext", "Title\n\ntext"),
        ("*a* **b** ~~c~~ `d` __e__", "a b c d e"),
        ("a\nb  \nc", "a\nb\nc"),
        ("- a\n- b\n  - c\n\n* d", "• a\n• b\n  • c\n\n• d"),
        ("- a\n\n  more\n- b", "• a\n\n  more\n• b"),
        ("1. a\n1. b\n1. c", "1. a\n2. b\n3. c"),
        ("7) a\n8) b\n\ntext\n\n1. c", "7) a\n8) b\n\ntext\n\n1. c".replace(")", ".")),
        ("text\n- a\nlazy\n2. b", "text\n• a\n  lazy\n2. b"),
        ("1. a\n   ```\n   x\n   ```\n2. b", f"1. a\n   {FRAME[:36]}\n   x\n   {FRAME[:36]}\n2. b"),
        ("> a\n> b\n> > c\n\nd", "│ a\n│ b\n│ │ c\n\nd"),
        ("a\n\n---\n\nb", f"a\n\n{FRAME}\n\nb"),
        ("[text](http://a.b/c?d)", "text (http://a.b/c?d)"),
        ("<http://a.b> <x@a.b>", "http://a.b x@a.b"),
        ("[http://good.com](http://bad.com)", "http://good.com (http://bad.com)"),
        ("![alt](http://a.b/c.png)", "alt (http://a.b/c.png)"),
        ("[a][b]\n\n[b]: http://c", "[a][b]\n\n[b]: http://c"),
        ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
        ("<b>bold</b> <!-- no --> &lt;", "<b>bold</b> <!-- no --> <"),
        ("<div>\nhello\n</div>", "<div>\nhello\n</div>"),
        ("[bold]rich[/bold] [link=http://x]y[/link]", "[bold]rich[/bold]\n[link=http://x]y[/link]"),
        ("&#x202e;evil &#27;[2J &#x9b;1m", "<U+202E>evil �[2J �1m"),
        ("a  b\u00a0c", "a  b\u00a0c"),
        (
            "漢字かな交じり文は、どこでも改行できます。長い行。",
            "漢字かな交じり文は、どこでも改行できま\nす。長い行。",
        ),
        ("שלום עולם, hello", "שלום עולם, hello"),
        ("👩‍👩‍👧 ok ❤️ 🇩🇪", "👩‍👩‍👧 ok ❤️ 🇩🇪"),
        ("x" * 50, "x" * 39 + "\n" + "x" * 11),
        ("\n\n\na\n\n\n\nb\n\n", "a\n\nb"),
    ],
)
def test_constructs(source, shown):
    """Each construct on a screen of 40 columns."""
    assert screen_of(source) == drawable(shown)


def test_code_block():
    """Code stands between two lines, the first with its language; it starts at the first column."""
    frame = "── python " + "─" * 29
    text = "```python\ndef f():\n\treturn 1\n\n# end\n```\nafter"
    assert screen_of(text) == f"{frame}\ndef f():\n    return 1\n\n# end\n{FRAME}\nafter"


def test_a_long_line_of_code_can_be_copied_whole():
    """A finished line of code is written without line feeds; the terminal breaks it."""
    terminal = show(f"```\n{'x' * 100}\n```", range(110))
    assert "x" * 100 in re.sub(OWN, lambda m: m[0] if m[0] == "\n" else "", terminal.written)
    assert terminal.rows == [FRAME, "x" * 40, "x" * 40, "x" * 20, FRAME]


TABLE = "| name | n |\n|:--|--:|\n| a | 1 |\n| long name | 22 |\n"


def test_table():
    """Columns are as wide as their cells and keep their side; wide cells are broken."""
    assert screen_of(TABLE) == ("name         n\n──────────────\na            1\nlong name   22")
    rows = screen_of(f"| a | b |\n|-|-|\n| {'word ' * 20} | {'x' * 30} |").split("\n")
    assert max(map(len, rows)) <= 39
    assert " ".join(rows).count("word") == 20
    assert "".join(rows).count("x") == 30


def test_table_with_too_many_columns():
    """A table that cannot stand side by side is shown as it was written."""
    head = "|" + "a|" * 30
    assert screen_of(f"{head}\n{'|-' * 30}|\n{head}").replace("\n", "").count("a") == 60


def test_unclosed_at_the_end():
    """What is half open at the end of the answer is shown as far as it goes."""
    assert screen_of("```py\nx = 1") == f"── py {'─' * 33}\nx = 1\n{FRAME}"
    assert screen_of("some **bold") == "some **bold"
    assert screen_of("| a | b |\n|--") == "| a | b |\n|--"
    assert screen_of("| a | b |\n|--|--|\n| 1 ").startswith("a   b")
    assert screen_of("[text](http://a") == "[text](http://a"
    assert screen_of("-") == "•"
    assert screen_of("12") == "12"


@pytest.mark.parametrize(
    ("source", "mended"),
    [
        ("a **b", "a **b**"),
        ("a **b** c", "a **b** c"),
        ("a **b*", "a **b**"),
        ("a **", "a "),
        ("a `b", "a `b`"),
        ("a ``b`c", "a ``b`c"),
        ("a `", "a "),
        ("done `x` and **y `z", "done `x` and **y `z`"),
        ("~~no", "~~no~~"),
        ("para **one\n\ntwo", "para **one\n\ntwo"),
        ("2 * 3", "2 * 3"),
        ("* item *b", "* item *b*"),
        ("a *", "a "),
        ("*a* b", "*a* b"),
    ],
)
def test_mend(source, mended):
    """Half-open emphasis of the open block is closed for the eye, so it never flips."""
    assert mend(source) == mended


def test_half_open_emphasis_is_never_seen():
    """While bold text and code stream in, their marks never show."""
    terminal = VirtualTerminal()
    answer = terminal.answer()
    for char in "some **bold text** and `code` here":
        answer.push(char)
        assert "*" not in terminal.rows[0]
        assert "`" not in terminal.rows[0]
    answer.close()
    assert terminal.rows == ["some bold text and code here"]


# -- streaming -------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        "", "", "text with **bold** and `code`", "*half", "**", "- item", "  - nested",
        "- ", "1. one", "2. two", "   inside", "```python", "```", "~~~",
        "def f(x): return '''a", "    indented", "# Heading", "---", "===", "> quote",
        "> ```", "| a | b |", "|---|--:|", "| 1 | 漢字 |", "[link](http://x.y)",
        "[ref]: http://z", "<div>", "&#x202e;", "long " * 15, "漢字かな" * 8, "👩‍👩‍👧 🙂 e\u0301",
        "שלום", "\ttab", "\\*escaped\\*", "* * *", "a  ", "\x1b[31mred", "10) ten",
        "x" * 90, "1234", "+", "#", "|",
    ]
)  # fmt: skip
DOCUMENTS = st.lists(LINES, max_size=10).map("\n".join)
PLACES = st.lists(st.integers(0, 10_000), max_size=20)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, PLACES)
@example("- a\n# b\n1. c\n\n```\nx", range(30))
def test_pieces_give_the_same_screen(text, places):
    """Cut anywhere, on a screen of any height, an answer ends as if it had been shown at once.

    Screen and scrollback together are compared, so no row is lost, and none is printed twice.
    """
    whole = show(text, rows=100)
    assert not whole.scrollback
    assert show(text, places, rows=6).rows == whole.rows


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, PLACES)
def test_scrollback_is_final(text, places):
    """A row that has left the screen is never printed again, nor followed by what it was not."""
    terminal = VirtualTerminal(rows=6)
    answer = terminal.answer()
    expected = show(text, rows=100).rows
    for piece in cut(text, places):
        answer.push(piece)
        gone = terminal.scrollback
        assert gone == expected[: len(gone)]
    answer.close()


OUTSIDE = st.text(st.sampled_from("\x1b\x9b[]\x07\r\n0;31mJ\u202e\x7fa🙂*`|-#>&x9b; \\()<\ud800"))


@settings(max_examples=100, deadline=None)
@given(OUTSIDE | st.text(max_size=40), PLACES)
@example("[a](http://x/\x1b]8;;evil\x07)", [3])
@example("```\x1b[2J\n\x1b]0;t\x07\n```", [5])
@example("&#x1b;[2J&#x9b;2J&#13;&#8238;&#0;", [])
@example("| \x1b[1m | &#x202e; |\n|-|-|\n| \r | \x9b |", [9])
def test_nothing_of_the_model_is_obeyed(text, places):
    """Besides our own few sequences no control character is written, whatever the model writes."""
    written = show(text, places).written
    rest = OWN.sub("", written)
    assert sanitize(rest) == rest
    assert "\x1b" not in rest
    assert "\x1b]8" not in written
    written.encode()


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=120))
def test_plain_text_needs_no_parser(text):
    """What is taken for plain text looks the same when it is parsed."""
    splitter = BlockSplitter()
    for block in [*splitter.push(sanitize(text)), *splitter.open_blocks(), *splitter.finish()]:
        if is_plain(block):
            rows = MarkdownRenderer(find_theme("terminal")).render(block, 30, is_final=True)
            assert rows == wrap([(block.source.strip(), "")], 30)


def test_tokens_are_appended():
    """In a plain paragraph only the new characters are written: no redraw, no escape sequence."""
    terminal = VirtualTerminal(columns=80)
    answer = terminal.answer()
    pieces = ["Hello", " there", ", friend", ". How", " are you?"]
    for piece in pieces:
        answer.push(piece)
    answer.close()
    assert terminal.writes == [*pieces, "\n"]


def test_only_the_open_block_is_redrawn():
    """Drawing never goes above the first row of the open block."""
    terminal = VirtualTerminal(columns=40, rows=24)
    answer = terminal.answer()
    answer.push("para one\n\n- item one\n- item two\n\n")
    start = len(terminal.writes)
    for piece in cut("**bold** text that\nhas `three` rows\nin *one* paragraph", range(60)):
        answer.push(piece)
    ups = [int(n) for n in re.findall(r"\x1b\[(\d+)A", "".join(terminal.writes[start:]))]
    assert max(ups, default=0) <= 2


def test_drawing_is_bounded():
    """When drawing is slow, pieces are gathered; the end is complete all the same."""
    terminal, now = VirtualTerminal(columns=80), [0.0]
    answer = terminal.answer()

    def clock():
        now[0] += 0.01
        return now[0]

    answer._clock = clock
    for number in range(200):
        answer.push(f"word{number} ")
        now[0] += 0.001
    answer.close()
    assert len(terminal.writes) < 100
    assert " ".join(terminal.rows).split() == [f"word{n}" for n in range(200)]


def test_a_huge_block_is_not_parsed(monkeypatch):
    """A block too large to be parsed again and again is shown as it was written."""
    monkeypatch.setattr(markdown, "MAX_BLOCK_CHARS", 50)
    assert screen_of("**" + "word " * 20).startswith("**word")


def test_a_parser_that_fails(monkeypatch):
    """Should the parser break, the text is shown as it was written."""
    monkeypatch.setattr(markdown, "_parser", lambda: 1 / 0)
    assert screen_of("**a**") == "**a**"


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_screens(rows):
    """A screen of a few rows and columns shows everything in its scrollback."""
    text = "Some words that *wrap* a lot.\n\n- and\n- a list"
    whole = show(text, columns=10, rows=100).rows
    assert show(text, range(60), columns=10, rows=rows).rows == whole


# -- resizing --------------------------------------------------------------------------------------

WORDS = [f"w{n:03}" for n in range(60)]


@pytest.fixture
def no_reflow(monkeypatch):
    from mlxchat.cli import live

    for name in live._REFLOWS:
        monkeypatch.delenv(name, raising=False)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 59), st.integers(0, 40), st.integers(8, 14))
def test_wider_during_an_answer(at, more, rows):
    """After the terminal became wider or another height each word is there once, in order."""
    terminal = VirtualTerminal(columns=30, rows=10)
    answer = terminal.answer()
    for number, word in enumerate(WORDS):
        if number == at:
            terminal.resize(30 + more, max(rows, 10))
        answer.push(f"*{word}* " + ("\n\n" if number % 20 == 19 else ""))
    answer.close()
    assert " ".join(terminal.rows).split() == WORDS


def test_narrower_during_an_answer(no_reflow):
    """A narrower terminal that does not reflow: the open block is redrawn in its place."""
    terminal = VirtualTerminal(columns=60, rows=20)
    answer = terminal.answer()
    answer.push("first\n\n" + " ".join(WORDS[:30]))
    assert len(terminal.rows) == 5
    terminal.resize(30, 20)
    answer.push(" " + " ".join(WORDS[30:]))
    answer.close()
    assert terminal.rows[:2] == ["first", ""]
    assert " ".join(terminal.rows[2:]).split() == WORDS


def test_narrower_where_the_terminal_reflows(monkeypatch):
    """Where the terminal broke the open rows anew, all of what they became is taken away."""
    monkeypatch.setenv("TERM_PROGRAM", "Apple_Terminal")
    terminal = VirtualTerminal(columns=60, rows=20)
    region = terminal.region
    region.show(["x" * 59, "\x1b[1m" + "y" * 41 + "\x1b[0m", "z"])
    terminal.screen.resize(20, 20)  # 3 + 3 + 1 rows
    region.show(["new"])
    assert terminal.writes[-1].startswith("\x1b[6A\r\x1b[J")


def test_a_long_table_while_it_is_open():
    """Only its head and last rows are laid out for the screen; in the end all are there."""
    rows = [f"| row {n} | {n * n} |" for n in range(60)]
    source = "\n".join(["| name | square |", "|:--|--:|", *rows])
    assert cut_table(source, 5).split("\n") == [*source.split("\n")[:2], *rows[-5:]]
    assert cut_table("a\n" * 30, 5) == "a\n" * 30
    terminal = VirtualTerminal(columns=40, rows=12)
    answer = terminal.answer()
    for at in range(0, len(source), 7):
        answer.push(source[at : at + 7])
    shown = [row.split()[:2] for row in terminal.rows]
    assert shown[-3:] == [["row", "57"], ["row", "58"], ["row", "59"]]
    answer.close()
    assert [row.split() for row in terminal.rows[-60:]] == [
        ["row", str(n), str(n * n)] for n in range(60)
    ]
    assert len(terminal.rows) == 62


@pytest.mark.parametrize(
    "text", ["see {} now, please", "see [it]({}) **now**", "- a {} and more", "see {}\nnow"]
)
def test_a_long_link_stays_whole(text):
    """The terminal breaks a web address that is wider than a row, so it can be opened and copied.

    While its block is open it is broken like any word, since open rows must fit.
    """
    link = "https://example.com/" + "abcdefghij" * 8
    terminal = show(text.format(link), range(0, 120, 9), columns=40, rows=30)
    written = OWN.sub("", terminal.writes[-2] + terminal.writes[-1])
    assert link in written
    assert terminal.rows[-1] in ("now, please", "now", "  and more")
    assert "".join(terminal.rows).replace(" ", "").count(link) == 1


# -- colours ---------------------------------------------------------------------------------------


def test_colours_of_code():
    """Words of a known language have colours, the text stays; an unknown language has none."""
    theme = find_theme("terminal")
    rows = markdown.highlight(["def f():", '  return "x"'], "python", theme)
    assert ("def", theme.keyword) in rows[0]
    assert ('"x"', theme.string) in rows[1]
    for language in ("nonsense", "", "\x1b"):
        assert markdown.highlight(["def", ""], language, theme) == [[("def", "")], []]


@pytest.mark.parametrize("language", ["python", "json", "html", "bash", "diff", "rust", "console"])
@settings(max_examples=20, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n"), max_size=12), min_size=1))
def test_highlighting_keeps_the_text(language, lines):
    """Whatever the code, its characters stay."""
    rows = markdown.highlight(lines, language, find_theme("dark"))
    assert ["".join(text for text, _ in row) for row in rows] == lines


def test_streamed_code_has_the_colours_of_the_whole():
    """A string that goes over lines is coloured although its lines came one by one."""
    terminal = show('```python\na = """one\ntwo\n"""\n```', range(50))
    row = terminal.screen.buffer[2]
    assert "".join(row[c].data for c in range(3)) == "two"
    assert row[0].fg == "green"


def test_a_long_string_keeps_its_colour():
    """Lines deep in a string are its own, also where the last few alone would look like code."""
    lines = [
        "def f():",
        '    """A long one.',
        *["    return if for"] * 30,
        '    """',
        "    return 1",
    ]
    code = "\n".join(lines)
    whole = markdown.highlight(lines, "python", find_theme("terminal"))
    renderer = markdown.MarkdownRenderer(find_theme("terminal"))
    renderer.render(Block("fence", "python"), 60, is_final=True)
    streamed = [renderer.render(Block("code", line), 60, is_final=True)[0] for line in lines]
    assert streamed == whole
    assert show(f"```python\n{code}\n```", range(0, len(code), 7), rows=40).rows[1:-1] == lines


@pytest.mark.parametrize(
    ("depth", "escape"),
    [
        ("STANDARD", "\x1b[34m"),
        ("EIGHT_BIT", "\x1b[38;5;"),
        ("TRUECOLOR", "\x1b[38;2;"),
        (None, ""),
    ],
)
def test_paint(depth, escape):
    """A colour is written as the terminal can show it; blanks at the end are not written."""
    # Rich keeps the sequence of a style: each has its own here.
    style = "blue" if depth == "STANDARD" else "#7cc7fe" if depth == "TRUECOLOR" else "#7cc7ff"
    painted = Painter(depth).paint([("a", ""), ("b ", style), ("  ", "")])
    assert painted.startswith(f"a{escape}")
    assert OWN.sub("", painted) == "ab"


# -- widths ----------------------------------------------------------------------------------------

RUNS = st.lists(
    st.tuples(
        st.text(st.sampled_from("ab cd\n漢。🙂\u0301\u05e9"), max_size=30),
        st.sampled_from(["", "bold"]),
    ),
    max_size=4,
)


@given(RUNS, st.integers(2, 20))
def test_wrap(runs, width):
    """Rows are not wider than they may be; nothing but blanks at their borders is lost."""
    for break_up in (wrap, fold):
        rows = break_up(runs, width)
        texts = ["".join(text for text, _ in row) for row in rows]
        joined = "".join(text for text, _ in runs)
        assert "".join("".join(texts).split()) == "".join(joined.split())
        assert all(text_width(text) <= width for text in texts)
        assert texts
