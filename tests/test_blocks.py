"""Markdown cut into blocks while it streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.cli.blocks import Block, BlockSplitter


def split(*pieces):
    splitter = BlockSplitter()
    return [block for piece in pieces for block in splitter.push(piece)] + splitter.finish()


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a\nb\n\nc", [Block("text", "a\nb"), Block("text", "c", gap=True)]),
        ("a\n# h\nb", [Block("text", "a"), Block("text", "# h"), Block("text", "b")]),
        ("a\n---\nb", [Block("text", "a\n---"), Block("text", "b")]),
        ("- a\n\n  b\n\nc", [Block("item", "- a\n\n  b"), Block("text", "c", gap=True)]),
        (
            "3. a\n3. b\n\nx\n\n9. c",
            [
                Block("item", "3. a", number=3),
                Block("item", "3. b", number=4),
                Block("text", "x", gap=True),
                Block("item", "9. c", gap=True, number=9),
            ],
        ),
        ("a\n14. b", [Block("text", "a\n14. b")]),
        ("a\n1. b", [Block("text", "a"), Block("item", "1. b", number=1)]),
        (
            "```py\n- a\n\n``\n```\nb",
            [
                Block("fence", "py"),
                Block("code", "- a"),
                Block("code", ""),
                Block("code", "``"),
                Block("end", ""),
                Block("text", "b"),
            ],
        ),
        ("  ~~~\n   a\n  ```", [Block("fence", ""), *[Block("code", t) for t in (" a", "```")]]),
        ("- ```\n  x\n  ```\n- b", [Block("item", "- ```\n  x\n  ```"), Block("item", "- b")]),
        ("* * *\n* a", [Block("text", "* * *"), Block("item", "* a")]),
    ],
)
def test_blocks(text, blocks):
    """Paragraphs, items and code blocks end where CommonMark ends them."""
    found = split(text)
    assert found[: len(blocks)] == blocks
    assert all(block == Block("end", "") for block in found[len(blocks) :])


@given(st.text(st.sampled_from("ab-*#`~>1. \n|"), max_size=60), st.lists(st.integers(0, 60)))
def test_pieces_give_the_same_blocks(text, places):
    """However a text is cut, its blocks are the same."""
    ends = sorted(min(place, len(text)) for place in places)
    starts = [0, *ends]
    pieces = [text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True)]
    assert split(*pieces) == split(text)


@pytest.mark.parametrize("text", ["-", "##", "12", "1.", "``", "| --", "> ", "**"])
def test_a_line_that_is_undecided_waits(text):
    """The beginning of a line is not shown while it may become something else."""
    splitter = BlockSplitter()
    splitter.push("before\n" + text)
    assert splitter.open_blocks() == [Block("text", "before")]


def test_open_code():
    """Of a code block only the line that is not finished is open, and never half its end."""
    splitter = BlockSplitter()
    assert splitter.push("```\none\ntw") == [Block("fence", ""), Block("code", "one")]
    assert splitter.open_blocks() == [Block("code", "tw")]
    splitter.push("o\n``")
    assert splitter.open_blocks() == []
