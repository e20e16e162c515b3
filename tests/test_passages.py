"""Files cut into passages: nothing is lost, places are right, nothing is too long."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.chat.passages import Passage, cut_text

LINES = st.lists(
    st.sampled_from(
        ["", "", "  ", "# head", "## more", "one two", "a b c d e f g h", "x" * 30, "é"]
    ),
    max_size=25,
)


def count(text):
    """Counts words, and more of long ones, as a tokenizer would."""
    return sum(1 + len(word) // 8 for word in text.split())


@given(LINES, st.integers(1, 12))
@bounded(max_examples=150)
def test_nothing_is_lost_or_too_long(lines, most):
    """Every visible character is in one passage, in order, and a passage has few tokens."""
    text = "\n".join(lines)
    passages = cut_text(text, "f", "paragraph", count, most)
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())
    for passage in passages:
        assert count(passage.text) <= most or len(passage.text) < 2 or " " not in passage.text
        assert count(passage.text) <= most or len(passage.text) <= 8
        inside = "\n".join(lines[passage.first_line - 1 : passage.last_line])
        assert passage.text in inside
        assert passage.text == passage.text.strip()


@given(LINES)
@bounded(max_examples=80)
def test_paragraphs_end_at_empty_lines(lines):
    """With room enough a passage is a paragraph: an empty line in it follows a heading alone."""
    for passage in cut_text("\n".join(lines), "f", "paragraph", count, 10_000):
        inside = passage.text.split("\n")
        for index, line in enumerate(inside):
            if not line.strip():
                assert all(one.startswith("#") or not one.strip() for one in inside[:index])


def test_places():
    """A heading goes with its paragraph; first and last line are told as editors count."""
    text = "# A\n\nfirst\nsecond\n\n\nthird\n"
    passages = cut_text(text, "a.md", "paragraph", count, 50)
    assert passages == [
        Passage("# A\n\nfirst\nsecond", "a.md", 1, 4),
        Passage("third", "a.md", 7, 7),
    ]
    assert [p.place for p in passages] == ["a.md:1", "a.md:7"]
    assert Passage("typed").place == ""


def test_files_and_lines():
    """A file is one passage, or each of its visible lines is; an empty file gives none."""
    text = "one\n\n two \n"
    assert [p.text for p in cut_text(text, "f", "file", count, 1)] == [text]
    lines = cut_text(text, "f", "line", count, 1)
    assert [(p.text, p.first_line) for p in lines] == [("one", 1), ("two", 3)]
    for split in ("file", "line", "paragraph"):
        assert cut_text(" \n\n", "f", split, count, 5) == []
