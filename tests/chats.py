"""A REPL whose keyboard is a pipe and whose screen is a string, over a fake session."""

import io
from contextlib import contextmanager

from fakes import FakeSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlxchat.chat.session import ChatOptions
from mlxchat.cli.options import Request
from mlxchat.cli.repl import Repl
from mlxchat.cli.screen import Screen
from mlxchat.cli.turn import Answers
from mlxchat.settings import Settings

ENTER, ALT_ENTER, CTRL_J, CTRL_C, CTRL_D = "\r", "\x1b\r", "\n", "\x03", "\x04"


class Chat:
    """One REPL; `session.sent` holds what it sent."""

    def __init__(self, pipe, model, settings):
        self._pipe, self._out = pipe, io.StringIO()
        self.session = FakeSession(model, ChatOptions())
        screen = Screen(self._out, self._out)
        answers = Answers(self.session, screen, turn_line=True)
        self.repl = Repl(lambda: answers, screen, Request(model, {}, {}, settings, {}, {}))

    def run(self, keys):
        """Types, then Ctrl-D; returns what was printed."""
        self._pipe.send_text(keys + CTRL_D)
        assert self.repl.run() == 0
        return self._out.getvalue()


@contextmanager
def chats():
    """Yields what makes chats: of a model, with settings."""
    made = []
    with create_pipe_input() as pipe, create_app_session(pipe, DummyOutput()):

        def make(model=None, **settings):
            made.append(Chat(pipe, model, Settings(**settings)))
            return made[-1]

        yield make
    for chat in made:
        chat.session.close()


def paste(text):
    """Returns the keys of a bracketed paste."""
    return f"\x1b[200~{text}\x1b[201~"
