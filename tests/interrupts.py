"""Presses Ctrl-C at random moments of a chat, and checks that nothing of it is left behind.

After each press the next turn must give the tokens that a chat gives which was never interrupted:
the same conversation on an empty cache. And at most one forward pass may begin after a press: the
one whose check came just before it.

Used by `test_interrupts.py`, forty times, and by `scripts/interrupt_test`, as often as one likes.
"""

import copy
import io
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from tiny import CHATML, END_THINK, IM_END, KINDS, REASONING, TinySession, biased, make_tiny_folder

from mlxchat.cli.failures import Stopped
from mlxchat.cli.screen import Screen
from mlxchat.cli.terminal_modes import chat_signals
from mlxchat.cli.turn import Answers, follow
from mlxchat.errors import MlxchatError

WORDS = "the other one said that it is in the ring and on the line then".split()  # noqa: SIM905
# What is interrupted; each is as likely as the others.
PHASES = (
    "load",
    "prefill",
    "thinking",
    "decode",
    "retry",
    "continue",
    "compaction",
    "settle",
    "type-ahead",
)
CHUNK = 8
# Prompts that were read in other pieces differ by 2e-6. Where two tokens come out of the draw that
# close, the answers differ: seen once in a thousand turns.
ROUNDING = 1e-5


@dataclass
class Tally:
    """What happened: presses by phase, how many took effect, and the passes that came after."""

    num_presses: int = 0
    phases: Counter = field(default_factory=Counter)
    num_stopped: int = 0
    num_kept: int = 0
    num_refused: int = 0
    num_ties: int = 0
    most_passes_after: int = 0


class InterruptTest:
    """One chat over a tiny model, and another of the same kind that nobody interrupts.

    Args:
        folder: Where the model is made.
        seed: Decides everything but the exact moments.
        kind: Of the model.
    """

    def __init__(self, folder, seed, kind=None):
        self.random = random.Random(seed)
        self.tally = Tally()
        self._kind = kind or self.random.choice(KINDS)
        template = self.random.choice([CHATML, REASONING])
        name = "full" if self._kind == "recurrent" else self._kind
        self._folder = make_tiny_folder(
            folder, name, template=template, max_position_embeddings=4096
        )
        self._session, self._fresh = self._open(), self._open()
        self._keys = []  # presses that are to come

    def close(self):
        """Ends both chats."""
        self._session.close()
        self._fresh.close()

    def _open(self):
        session = TinySession(
            self._folder,
            self._kind,
            chunk=CHUNK,
            sampling=biased((END_THINK, 5.0), (IM_END, 3.0)),
            max_tokens=30,
            idle_work=True,
            verify=False,
            keeps_history=False,
        )
        session.answers = Answers(session, Screen(io.StringIO(), io.StringIO()))
        return session

    def run(self):
        """Interrupts one thing and checks the turn that follows."""
        with chat_signals():  # between answers the chat takes no notice of the key
            self._run(self.random.choice(PHASES))

    def _run(self, phase):
        if self._session.num_turns > 6:
            self._session.reset()
        self.tally.num_presses += 1
        self.tally.phases[phase] += 1
        if phase == "load":
            self._interrupt_load()
        elif phase in ("settle", "type-ahead"):
            self._interrupt_idle_work(phase)
        else:
            self._interrupt(phase)
        self._check_next_turn(phase)

    # -- presses -----------------------------------------------------------------------------------

    def _interrupt(self, phase):
        session = self._session
        if phase in ("retry", "continue", "compaction"):
            if not session.num_turns:
                session.send(self._text(6)).result(60)
            session.wait_until_idle()
        start = {
            "retry": session.retry,
            "continue": session.go_on,
            "compaction": lambda: session.compact(1),
        }.get(phase, lambda: session.send(self._text(60 if phase == "prefill" else 6)))
        after = self.random.randrange(12 if phase == "prefill" else 40)
        self._press_after(phase, after)
        self._follow(start)

    def _press_after(self, phase, num_passes):
        """Has the key pressed in a forward pass, or when the first thought is shown."""

        def press():
            delay_s = self.random.random() * 0.002
            self._press_in(delay_s)

        if phase != "thinking":
            self._session.model_.after(num_passes, press)
            return
        put = type(self._session.runner)._decode

        def decode(*args, **options):
            self._session.model_.after(num_passes % 8, press)
            return put(self._session.runner, *args, **options)

        self._session.runner._decode = decode

    def _press_in(self, delay_s):
        key = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
        key.start()
        self._keys.append(key)

    def _wait_for_keys(self):
        """Waits until every press has come: one that is late would hit what follows."""
        while self._keys:
            self._keys.pop().join()

    def _follow(self, start):
        """Follows a job as the chat does, the key included."""
        session, passes_after = self._session, 0
        is_live = session.model_.is_live

        def count(cache):
            nonlocal passes_after
            running = session._worker._running  # this thread's
            passes_after += not running.idle and running._context.cancelled
            return is_live(cache)

        session.model_.is_live = count
        try:
            result = follow(start, session.answers.screen)
            self.tally.num_kept += getattr(result, "stop_reason", "") == "user_cancelled"
        except Stopped:
            self.tally.num_stopped += 1
        except MlxchatError:
            self.tally.num_refused += 1  # nothing to go on with, or no summary came of it
        finally:
            session.model_.hook, session.model_.is_live = None, is_live
            session.runner.__dict__.pop("_decode", None)
            self._wait_for_keys()
        self.tally.most_passes_after = max(self.tally.most_passes_after, passes_after)
        assert passes_after <= 1, f"{passes_after} passes were begun after the key"

    def _interrupt_load(self):
        """Stops a message that has the model loaded first."""
        old, session = self._session, None
        conversation = copy.deepcopy(old.conversation)
        old.close()
        self._session = session = self._open()
        session.conversation = conversation
        session.info = None  # it loads again
        self._press_in(self.random.random() * 0.05)
        self._follow(lambda: session.send(self._text(6)))
        if session.info is None:
            session.load().result(60)
        session._worker.run(lambda _: session._swap(self._kind, CHUNK))

    def _interrupt_idle_work(self, phase):
        """Has a message come in the middle of idle work: the turn that is checked does that."""
        session = self._session
        session.send(self._text(6)).result(60)
        if phase == "type-ahead":
            session.read_ahead(self._text(60), is_still=self.random.random() < 0.5)
        time.sleep(self.random.random() * 0.02)

    # -- checks ------------------------------------------------------------------------------------

    def _check_next_turn(self, phase):
        session, fresh = self._session, self._fresh
        if self.random.random() < 0.5:
            session.wait_until_idle()
        text = self._text(self.random.randrange(2, 20))
        fresh.conversation = copy.deepcopy(session.conversation)
        fresh._worker.run(lambda _: fresh.prefix.reset())
        session.set_options(replace(session.options, verify=True))
        ours, theirs = session.send(text).result(60), fresh.send(text).result(60)
        session.set_options(replace(session.options, verify=False))
        assert ours.verify.tokens_equal
        assert ours.verify.max_abs_logit_diff < ROUNDING
        assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
        if ours.tokens != theirs.tokens:
            self.tally.num_ties += 1
            ties, most = self.tally.num_ties, 1 + self.tally.num_presses // 200
            assert ties <= most, f"after an interrupted {phase} the answer differs"
        fresh.wait_until_idle()
        held = session._worker.run(
            lambda _: (len(session.prefix.token_ids), session.prefix.cache.offsets())
        )
        assert held[1] <= {held[0]}, f"after an interrupted {phase} the layers stand at {held}"

    def _text(self, num_words):
        return " ".join(self.random.choices(WORDS, k=num_words))
