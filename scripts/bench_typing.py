"""What type-ahead is worth, and that it holds no key press up.

A random float32 model of 12 layers and width 512. Three figures, each a ratio or a limit within one
run: the first token after a long message that was typed, with type-ahead to without (A B A B); the
first token at turn 30 of a thinking conversation to that at turn 2; and the time from a key press
to its character on the screen of a pseudo-terminal while a draft is being read. A bare
prompt-toolkit prompt takes its keys in turn with ours: its slowest are the machine's own pauses.
"""

import argparse
import json
import os
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import END_THINK, IM_END, REASONING, biased, make_tiny_folder  # noqa: E402

from mlxchat.chat.results import TurnResult  # noqa: E402
from mlxchat.chat.session import ChatOptions, Session  # noqa: E402
from mlxchat.cli.attachments import Attachments  # noqa: E402
from mlxchat.cli.drafts import Drafts  # noqa: E402
from mlxchat.engine.options import SamplingSettings  # noqa: E402

SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1 << 15,
}
SENTENCE = "the other one said that it is in the ring and on the line; then he read it again. "
TYPING_S, KEY_S = 3.0, 0.01
SLACK, QUESTION_S = 1.3, 1.0
# From the last key to Enter: the mean time between two keys of 168,000 typists (Dhakal et al. 2018,
# "Observations on Typing from 136 Million Keystrokes"), and Enter with the last key.
ENTER_S, ENTER_AT_ONCE_S = 0.24, 0.0
ANSWER_TOKENS = 80  # the most that thinking and answer have
LIMIT_RATIO, LIMIT_TURNS, LIMIT_KEY_MS = 0.15, 1.3, 20.0
# Letters that nothing else on the screen has.
KEYS = "QZXJ"
BARE = "from prompt_toolkit import PromptSession\nPromptSession().prompt('> ')\n"


def make_message(session: Session, num_tokens: int) -> str:
    """Returns words of about so many tokens."""
    per_sentence = session.count_tokens(SENTENCE) or 1
    return SENTENCE * round(num_tokens / per_sentence)


def open_session(folder: Path, **options: Any) -> Session:
    """Opens a session that has answered once, so that all is compiled and measured."""
    session = Session(str(folder), ChatOptions(keeps_history=False, **options))
    session.load().result()
    session.send(make_message(session, 600)).result()
    session.wait_until_idle()
    return session


def type_and_send(
    session: Session, text: str, typing_s: float, enter_s: float, *, reads_ahead: bool
) -> TurnResult:
    """Types a message at an even pace, sends it, and returns its answer.

    Args:
        session: Where it is said.
        text: The message.
        typing_s: From the first key to the last.
        enter_s: From the last key to Enter.
        reads_ahead: With type-ahead.
    """
    drafts = Drafts(session, Attachments(), str, lambda: None, reads_ahead=reads_ahead)
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < typing_s:
        drafts.change(text[: int(len(text) * passed / typing_s)])
        time.sleep(KEY_S)
    drafts.change(text)
    time.sleep(enter_s)
    drafts.sent()
    return session.send(text).result()


def bench_first_token(folder: Path, num_tokens: int, rounds: int) -> dict[str, float]:
    """The first token after a typed message, with type-ahead and without, in turn.

    It is typed over 3 s; where the machine cannot read it in that time, more slowly.
    """
    session = open_session(folder, max_tokens=2, sampling=SamplingSettings(temperature=0.0))
    session.reset()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    ahead, typing_s = 0, TYPING_S
    for number in range(1, 2 * rounds + 2):
        reads_ahead = number % 2 == 0
        text = f"{number} {make_message(session, num_tokens)}"
        result = type_and_send(session, text, typing_s, ENTER_AT_ONCE_S, reads_ahead=reads_ahead)
        if result.timing.ttft_s > typing_s:  # reading takes longer than typing
            typing_s = SLACK * result.timing.ttft_s
        seconds[reads_ahead].append(result.timing.ttft_s)
        if reads_ahead:
            ahead = result.usage.typeahead_tokens
        session.undo()
        session.wait_until_idle()
    session.close()
    ours, plain = (statistics.median(seconds[key]) for key in (True, False))
    return {
        "ratio": ours / plain,
        "ahead_s": ours,
        "plain_s": plain,
        "typeahead_tokens": ahead,
        "typing_s": typing_s,
    }


def bench_turns(folder: Path, rounds: int) -> dict[str, float]:
    """The first token at turn 30 and at turn 2 of conversations with long thinking.

    With Enter at a typist's pace, when the message has been read whole, and with Enter at once.
    """
    likely = biased((END_THINK, 4.0), (IM_END, 3.0))
    seconds: dict[tuple[str, int], list[float]] = {}
    depth = 0
    for _ in range(rounds):
        for pace, enter_s in (("", ENTER_S), ("at_once_", ENTER_AT_ONCE_S)):
            session = open_session(folder, max_tokens=ANSWER_TOKENS, sampling=likely)
            session.reset()
            for turn in range(1, 31):
                question = f"{turn} and then?"
                result = type_and_send(session, question, QUESTION_S, enter_s, reads_ahead=True)
                session.wait_until_idle()
                seconds.setdefault((pace, turn), []).append(result.timing.ttft_s)
                depth = result.usage.prompt_tokens
            session.close()
    figures: dict[str, float] = {"tokens_at_turn_30": depth}
    for pace in ("", "at_once_"):
        early, late = (statistics.median(seconds[pace, turn]) for turn in (2, 30))
        figures |= {f"{pace}ratio": late / early}
        figures |= {f"{pace}turn_30_s": late, f"{pace}turn_2_s": early}
    return figures


class Typist:
    """A prompt in a pseudo-terminal, and a keyboard with a stopwatch.

    Args:
        arguments: What follows `python` on its command line.
        home: The chat's folder.
    """

    def __init__(self, arguments: list[str], home: Path) -> None:
        environment = {
            **os.environ,
            "MLXCHAT_HOME": str(home),
            "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
            "TERM": "xterm",
        }
        self._process = pexpect.spawn(
            sys.executable, arguments, env=environment, dimensions=(24, 100), echo=False
        )
        self._terminal = self._process.child_fd

    def read(self, timeout_s: float) -> bytes:
        """Returns what was written within a time; at once when something was."""
        ready, _, _ = select.select([self._terminal], [], [], timeout_s)
        data = os.read(self._terminal, 65536) if ready else b""
        if b"\x1b[6n" in data:  # where is the cursor? The toolbar is drawn once this is known
            self.send("\x1b[5;1R")
        return data

    def wait_for(self, text: bytes, timeout_s: float = 60.0) -> None:
        """Reads until a text was written."""
        seen, deadline = b"", time.monotonic() + timeout_s
        while text not in seen:
            seen += self.read(0.1)
            if time.monotonic() > deadline:
                raise SystemExit(f"no {text!r} on the screen: {seen[-2000:]!r}")

    def send(self, text: str) -> None:
        """Types."""
        data = text.encode()
        while data:
            data = data[os.write(self._terminal, data) :]

    def press(self, key: str) -> float:
        """Presses a key and returns the seconds until it is on the screen."""
        started = time.perf_counter()
        self.send(key)
        while key.encode() not in self.read(5.0):
            if time.perf_counter() - started > 5:
                raise SystemExit(f"the key {key!r} did not come to the screen")
        return time.perf_counter() - started

    def close(self) -> None:
        """Leaves the chat."""
        self.send("\x03\x04")
        while True:
            try:
                if not self.read(5.0):
                    break
            except OSError:
                break
        try:
            self._process.close(force=True)
        except pexpect.ExceptionPexpect:  # on a busy machine even a killed process takes its time
            time.sleep(2)
            self._process.close(force=True)


def press_keys(folder: Path, home: Path, num_keys: int, *, reads_ahead: bool) -> Iterator[float]:
    """Yields seconds from key to screen with a long pasted draft, which is being read or not."""
    (home / "config").mkdir(parents=True, exist_ok=True)
    switch = "true" if reads_ahead else "false"
    (home / "config" / "config.toml").write_text(f"[chat]\ntypeahead = {switch}\n")
    typist = Typist(["-m", "mlxchat", "-m", str(folder), "--no-history"], home)
    typist.wait_for(b" tokens (")  # the toolbar says how much of the context is used
    for number in range(num_keys):
        if number % 100 == 0:  # enough to read for as long as the keys are pressed
            typist.send("\x15")
            time.sleep(0.3)  # else only what differs of the two drafts would be drawn
            typist.send(f"\x1b[200~{number} {SENTENCE * 200}\x1b[201~ ")
            typist.wait_for(b"pasted")
            time.sleep(0.5)
        yield press_one(typist, number)
    typist.close()


def press_bare_keys(home: Path, num_keys: int) -> Iterator[float]:
    """Yields the same of a bare prompt, with nothing but these keys in its line."""
    typist = Typist(["-c", BARE], home)
    typist.wait_for(b">")
    for number in range(num_keys):
        if number % 50 == 0:
            typist.send("\x15")
        yield press_one(typist, number)
    typist.close()


def press_one(typist: Typist, number: int) -> float:
    """Presses a key at the pace of a fast typist; returns the seconds until it is shown."""
    time.sleep(0.06)
    while typist.read(0.0):
        pass
    return typist.press(KEYS[number % len(KEYS)] if number % 7 else KEYS[number % 4])


def bench_keys(folder: Path, num_keys: int) -> dict[str, float]:
    """Percentiles of key presses while a draft is read, while none is, and at a bare prompt."""
    times: dict[str, list[float]] = {"reading": [], "idle": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for _ in range(2):
            times["reading"] += press_keys(folder, home, num_keys // 2, reads_ahead=True)
            times["idle"] += press_keys(folder, home, num_keys // 2, reads_ahead=False)
            times["bare"] += press_bare_keys(home, num_keys // 2)
    figures = {}
    for who, seconds in times.items():
        ordered = sorted(1e3 * s for s in seconds)
        for percent in (50, 90, 99):
            figures[f"{who}_p{percent}_ms"] = ordered[percent * len(ordered) // 100]
    return figures


def is_slow(keys: dict[str, float] | None) -> bool:
    """Whether reading holds keys up; a busy machine does so at a bare prompt too."""
    if keys is None:
        return False
    return keys["reading_p99_ms"] > max(LIMIT_KEY_MS, keys["bare_p99_ms"], keys["idle_p99_ms"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000, help="length of the typed message")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keys", type=int, default=400, help="key presses while reading")
    parser.add_argument("--only", choices=["typing", "turns", "keys"])
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = make_tiny_folder(Path(name) / "model", template=REASONING, **SHAPE)
        if args.only in (None, "typing"):
            figures["typing"] = bench_first_token(folder, args.tokens, args.rounds)
        if args.only in (None, "turns"):
            figures["turns"] = bench_turns(folder, args.rounds)
        if args.only in (None, "keys"):
            figures["keys"] = bench_keys(folder, args.keys)
    for name, found in figures.items():
        print(name, {key: round(value, 4) for key, value in found.items()}, file=sys.stderr)
    print(json.dumps(figures))
    is_missed = (
        figures.get("typing", {}).get("ratio", 0) > LIMIT_RATIO
        or figures.get("turns", {}).get("ratio", 0) > LIMIT_TURNS
        or is_slow(figures.get("keys"))
    )
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
