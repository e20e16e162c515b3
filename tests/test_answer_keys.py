"""The listener during an answer: what it acts on, what it keeps, however bytes come."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.keys import Keys

from mlxchat.cli import answer_keys
from mlxchat.cli.answer_keys import listen

TYPED = "né\x1b[Dw \x1b[200~a\rb\x1b[201~\r\x04\x1bx"
KEYS = ["n", "é", Keys.Left, "w", " ", Keys.BracketedPaste, Keys.ControlM, Keys.ControlD]


@pytest.fixture
def keyboard():
    """A keyboard that is a pipe."""
    with create_pipe_input() as keyboard:
        yield keyboard


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 12), max_size=12))
def test_keys_in_pieces(sizes):
    """Wherever reads divide letters, arrow keys and pastes, each key is kept once, in order."""
    pressed, data = [], TYPED.encode()[:-2]
    with create_pipe_input() as keyboard, pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_keys, "ESCAPE_WAIT_S", 0.5)
        with listen(keyboard, True, {Keys.Escape: lambda: pressed.append(True)}):
            for size in sizes:
                keyboard.send_bytes(data[:size])
                data = data[size:]
                time.sleep(0.001)
            keyboard.send_bytes(data)
        assert [press.key for press in get_typeahead(keyboard)] == KEYS
    assert pressed == []


def test_a_lone_escape_acts(keyboard):
    """Esc with nothing after it does its action once; Alt and a letter is kept."""
    pressed = []
    with listen(keyboard, True, {Keys.Escape: lambda: pressed.append(True)}):
        keyboard.send_text("a\x1b")
        deadline = time.monotonic() + 10
        while not pressed and time.monotonic() < deadline:
            time.sleep(0.01)
        keyboard.send_text("b")
    assert pressed == [True]
    assert [press.key for press in get_typeahead(keyboard)] == ["a", "b"]


def test_without_a_terminal_nothing_is_read(keyboard):
    """Where there is no terminal the input is left alone."""
    with listen(keyboard, False):
        keyboard.send_text("a")
    assert get_typeahead(keyboard) == []
    assert [press.key for press in keyboard.read_keys()] == ["a"]


def test_the_keyboard_goes_away(keyboard):
    """A terminal that is closed during an answer ends the listener, not the answer."""
    with listen(keyboard):
        keyboard.send_text("a")
        time.sleep(0.05)
        keyboard.close()
    assert [press.key for press in get_typeahead(keyboard)] == ["a"]
