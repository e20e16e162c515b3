"""When Enter sends: trailing backslashes and blocks in triple quotes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.cli.lines import QUOTES, block_state, continue_line, read_block

PIECES = st.lists(st.sampled_from(['"""', '"', "\\", "\n", " ", "a", "\t", "é"])).map("".join)


@pytest.mark.parametrize(
    ("text", "state", "inner"),
    [
        ("", "none", None),
        ("hello", "none", None),
        ('say """x"""', "none", None),
        ('"""', "open", None),
        ('""""', "open", None),
        ('"""""', "open", None),
        ('""""""', "closed", ""),
        ('"""a"""', "closed", "a"),
        ('  """a"""  ', "closed", "a"),
        ('"""a""" b', "none", None),
        ('"""a"""\nb', "none", None),
        ('"""\na\n"""', "closed", "a"),
        ('"""a\nb"""', "closed", "a\nb"),
        ('"""\n\na\n\n"""', "closed", "\na\n"),
        ('"""\ndef f():\n    """Doc."""\n    pass', "open", None),
        ('"""\nx = """y"""\nz\n"""', "closed", 'x = """y"""\nz'),
    ],
)
def test_blocks(text, state, inner):
    """A block begins with the message and ends with a line; what is between is the message."""
    assert block_state(text) == state
    assert read_block(text) == inner


@pytest.mark.parametrize(
    ("text", "longer"),
    [
        ("a", None),
        ("a\\", "a\n"),
        ("a\\\\", None),
        ("a\\\\\\", "a\\\\\n"),
        ("a\\ ", None),
        ("a\\\nb", None),
        ('"""a\\', '"""a\\\n'),
        ('"""a\\"""', None),
    ],
)
def test_enter(text, longer):
    """An odd number of backslashes, or an open block, adds a line; all else is sent."""
    assert continue_line(text) == longer


@given(text=PIECES)
def test_enter_loses_nothing(text):
    """Enter sends, or adds one line end and takes at most the backslash that asked for it."""
    longer = continue_line(text)
    if longer is not None:
        assert longer.endswith("\n")
        assert longer[:-1] in (text, text[:-1])
        assert longer[:-1] == text or text.endswith("\\")


@given(inner=PIECES, blanks=st.sampled_from(["", " ", "\n"]))
def test_any_text_can_be_a_block(inner, blanks):
    """Whatever stands between quotes on lines of their own is sent as it stands."""
    text = f"{QUOTES}\n{inner}\n{QUOTES}{blanks}"
    assert read_block(text) == inner
    assert continue_line(text) is None


@given(text=PIECES)
def test_a_block_is_typed_to_its_end(text):
    """A message that is no closed block is not taken apart."""
    assert (read_block(text) is None) == (block_state(text) != "closed")
    if read_block(text) is not None:
        assert read_block(text) in text
