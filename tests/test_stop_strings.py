"""Stop strings: the same end wherever token borders fall, and nothing of them leaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.chat.stop_strings import StopStrings

# Two letters: with more, texts hardly ever contain the strings, or two that overlap.
TEXTS = st.text("ab", max_size=12)


@st.composite
def splits(draw: st.DrawFn) -> list[str]:
    """A text cut into pieces, empty ones included."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def reference(text: str, stops: list[str]) -> str | None:
    """Reads letter by letter: the text before the string that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if s and text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return None


@bounded(max_examples=500)
@given(pieces=splits(), stops=st.lists(st.text("ab", max_size=4), max_size=3))
def test_every_split_gives_the_same_text(pieces: list[str], stops: list[str]) -> None:
    """What comes out is the text before the first stop string, or all of it."""
    text = "".join(pieces)
    want = reference(text, stops)
    filter_ = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filter_.push(piece)
        # Nothing is shown that a later piece could turn into part of a stop string.
        assert (text if want is None else want).startswith(shown)
    assert filter_.is_hit == (want is not None)
    assert shown + filter_.finish() == (text if want is None else want)
    assert filter_.finish() == ""


@bounded(max_examples=200)
@given(pieces=splits(), stop=st.text("ab", min_size=1, max_size=3))
def test_only_what_may_become_a_stop_string_is_held(pieces: list[str], stop: str) -> None:
    """Text appears as soon as it is certain: never more than the longest possible start waits."""
    filter_ = StopStrings([stop])
    read = shown = ""
    for piece in pieces:
        read += piece
        shown += filter_.push(piece)
        if filter_.is_hit:
            break
        held = read[len(shown) :]
        assert stop.startswith(held)
        assert held != stop


def test_nothing_after_a_hit() -> None:
    """Once it has ended, the text stays ended."""
    filter_ = StopStrings(["END"])
    assert filter_.push("say E") == "say "
    assert filter_.push("ND and more") == ""
    assert filter_.is_hit
    assert filter_.push("END again") == ""
    assert filter_.finish() == ""


@pytest.mark.parametrize("pieces", [["abcd"], ["abc", "d"], ["ab", "cd"], ["a", "b", "c", "d"]])
def test_overlapping_strings(pieces: list[str]) -> None:
    """Of two strings the one that is complete first ends the text, in every split."""
    filter_ = StopStrings(["abcd", "bc"])
    assert "".join(filter_.push(piece) for piece in pieces) == "a"
    longer = StopStrings(["bc", "abc"])  # both end at the same place: the longer one
    assert "".join(longer.push(piece) for piece in pieces) == ""


def test_without_strings_text_passes_through() -> None:
    """No strings, or only empty ones, hold nothing back."""
    for stops in ([], [""], ["", ""]):
        filter_ = StopStrings(stops)
        assert filter_.push("any\ntext") == "any\ntext"
        assert filter_.finish() == ""
        assert not filter_.is_hit


def test_characters_outside_ascii() -> None:
    """Strings are compared by characters, combining marks and emoji included."""
    filter_ = StopStrings(["ß🙂e\u0301"])
    assert filter_.push("Straß") == "Stra"
    assert filter_.push("🙂e") == ""
    assert filter_.push("x") == "ß🙂ex"
    assert filter_.push("ß🙂e\u0301!") == ""
    assert filter_.is_hit
