"""Kills the real program at random moments, and checks the history and the stored prompt caches.

The history must hold what had been shown. Of the stored prompt caches each must be whole, and one
that was damaged on purpose must never be believed.

Used by `test_crash.py`, a few times, and by `scripts/crash_test`, for as long as one likes.
"""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlxchat.chat import history_search
from mlxchat.chat.history import History, open_history
from mlxchat.chat.history_file import history_path
from mlxchat.engine.prompt_store import BrokenChainError, PromptStore
from mlxchat.engine.stored_file import TEMPORARY_PREFIX
from mlxchat.errors import HistoryError

TESTS = Path(__file__).parent
SCRIPTED = [str(TESTS / "scripted.py")]
BUILT_IN = ["-m", "mlxchat"]
SYSTEM = "You are the keeper of a small museum by the sea. Answer in short sentences. " * 4
VERIFY_LIMIT = 1e-3  # float32; one wrong context token moves logits by a hundred times that
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@dataclass
class Shown:
    """What a program wrote before its end, read as it came."""

    data: bytearray = field(default_factory=bytearray)

    def read(self, stream):
        while piece := stream.read1(4096):
            self.data += piece

    @property
    def text(self):
        return self.data.decode(errors="ignore")


@dataclass
class Tally:
    """What happened in all runs."""

    num_runs: int = 0
    num_killed: int = 0
    num_turns: int = 0
    num_partial: int = 0
    num_bytes: int = 0
    num_resumed: int = 0
    num_reused: int = 0
    num_files: int = 0
    num_half_written: int = 0
    num_damaged: int = 0
    num_refused: int = 0


class CrashTest:
    """Runs the program again and again over one history.

    Args:
        home: MLXCHAT_HOME of all runs; must be the one of this process.
        seed: Decides messages, options and the moments of the kills.
    """

    def __init__(self, home, seed):
        self.home, self.random = home, random.Random(seed)
        self.tally = Tally()
        self._known = {}
        self._damaged = {}  # what was written into a file, by its name

    # -- one run

    def run_piped(self, program=SCRIPTED, *, as_json=False):
        """Feeds some lines to a chat, kills it, and checks the history."""
        arguments = ["chat"]
        if program is BUILT_IN:
            arguments += ["--temp", "0", "--max-tokens", "24", "--verify", "-s", SYSTEM]
        if as_json:
            arguments.append("--json")
        if self._known and self.random.random() < 0.5:
            arguments.append("--continue")
        lines = [self._line() for _ in range(self.random.randint(1, 5))]
        process = self._start(program, arguments)
        shown = Shown()
        reader = threading.Thread(target=shown.read, args=(process.stdout,))
        reader.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("".join(f"{line}\n" for line in lines).encode())
            process.stdin.close()
        if program is BUILT_IN and self.random.random() < 0.7:
            self._wait_for_a_write(process)
        else:
            self._wait_for_the_moment(process, shown)
        self._kill(process)
        reader.join()
        process.stdout.close()
        self.check(shown.text, as_json=as_json)
        if program is BUILT_IN:
            self.check_store()
            if self.random.random() < 0.5:
                self._damage_a_file()
            self.resume()

    def resume(self):
        """Goes on with the last chat to its end: what it takes from disk must be exact."""
        arguments = ["chat", "--json", "--verify", "--temp", "0", "--max-tokens", "8"]
        arguments += ["--continue"] if self._known else ["-s", SYSTEM]
        process = self._start(BUILT_IN, arguments)
        shown, _ = process.communicate(b"What is a KV cache?\n", timeout=120)
        assert process.returncode == 0
        result = json.loads(shown)
        self._check_exact(result)
        self.tally.num_resumed += 1
        self.tally.num_reused += result["cache"]["source"] == "disk"
        self.check(shown.decode(), as_json=True)
        self.check_store()

    def run_terminal(self):
        """Types some lines into a chat in a terminal, kills it, and checks the history."""
        from terminal import Terminal

        with Terminal(*SCRIPTED, MLXCHAT_PAUSE_S="0.004") as terminal:
            terminal.wait_for(" of 512 tokens", timeout_s=60)
            for _ in range(self.random.randint(1, 3)):
                terminal.send(f"{self._line()}\r")
            until = time.monotonic() + self.random.uniform(0, 1.0)
            while time.monotonic() < until and terminal.read(0.01):
                pass
            self.tally.num_runs += 1
            self.tally.num_killed += terminal.process.isalive()
            terminal.process.kill(9)
            while terminal.read():
                pass
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.raw.decode(errors="ignore"))
        answers = re.findall(r"^you said: [^\r\n]*", plain.replace("\r", ""), re.MULTILINE)
        self.check("\n".join(answers), as_json=False, is_terminal=True)

    def _line(self):
        words = " ".join(self.random.choices(WORDS, k=self.random.randint(1, 40)))
        kind = self.random.choice(
            ["", "", "", "", "think ", "fail ", "forbidden ", "/undo ", "/retry "]
        )
        return kind.strip() if kind.startswith("/") else f"{kind}{words}"

    def _start(self, program, arguments):
        pause_s = self.random.choice([0, 0.0005, 0.002, 0.01])
        env = dict(os.environ, MLXCHAT_HOME=str(self.home), MLXCHAT_PAUSE_S=str(pause_s))
        env["PYTHONPATH"] = str(TESTS.parent)
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _wait_for_the_moment(self, process, shown):
        """Waits until some text was shown (or for the exit) and a little longer."""
        target = self.random.choice([0, 1, 50, 200, 500, 10**9])
        started = time.monotonic()
        patience_s = self.random.uniform(0.1, 1.0) if target == 0 else 30.0
        while len(shown.data) < target or target == 0:
            if process.poll() is not None or time.monotonic() - started > patience_s:
                break
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, 0.03))

    def _wait_for_a_write(self, process):
        """Waits until a prompt cache is being written (or for the exit) and a little longer."""
        folder, started = PromptStore().folder, time.monotonic()
        old = set(_half_written(folder))
        while not old.symmetric_difference(_half_written(folder)):
            if process.poll() is not None or time.monotonic() - started > 30:
                return
            time.sleep(0.0002)
        time.sleep(self.random.uniform(0, 0.008))

    def _kill(self, process):
        self.tally.num_runs += 1
        self.tally.num_killed += process.poll() is None
        process.kill()
        process.wait()

    # -- what must hold

    def check(self, shown, *, as_json, is_terminal=False):
        """Asserts that the file is sound, that nothing is missing, and that it can go on."""
        self.tally.num_bytes += len(shown)
        history = open_history()
        if history is None:
            assert not shown.strip(), "something was shown, but there is no history"
            return
        with contextlib.closing(history):
            assert history.check() == []
            turns = self._turns(history)
            for number, said in self._known.items():
                assert turns[number].startswith(said), f"turn {number} has changed"
            new = [text for number, text in turns.items() if number not in self._known]
            if as_json:
                self._check_objects(history, shown)
            elif is_terminal:
                self._check_answers(new, shown.split("\n"))
            else:
                # Turns that showed nothing left no line either.
                held = "".join(f"{text}\n" for text in new if text)
                assert held.startswith(shown), f"shown {shown!r}, held {held!r}"
            self._known = turns
            self._check_use(history)
            self.tally.num_turns = len(turns)

    def check_store(self):
        """Asserts that each stored prompt cache is whole, or refused if it was damaged."""
        store = PromptStore()
        self.tally.num_half_written = len(_half_written(store.folder))
        for entry in store.entries():
            self.tally.num_files += 1
            try:
                store.chain(entry)
                with store.link(entry) as file:
                    assert len(file.read_ids()) == entry.num_ids
                    for _ in file.read_tensors():
                        pass
            except BrokenChainError as broken:
                self.tally.num_refused += 1
                names = {entry.name, getattr(broken.damaged, "name", None)}
                is_ours = names & self._damaged.keys() or "parent" in str(broken)
                if not self._damaged or not is_ours:
                    raise AssertionError(f"{entry.name}: {broken}") from broken
            else:
                data = (store.folder / entry.name).read_bytes()
                assert data != self._damaged.get(entry.name), f"{entry.name} was believed"

    def _damage_a_file(self):
        """Tears a stored prompt cache, turns over a bit of it, or blanks a page."""
        store = PromptStore()
        entries = store.entries()
        if not entries:
            return
        entry = self.random.choice(entries)
        path = store.folder / entry.name
        data = bytearray(path.read_bytes())
        at = self.random.randrange(len(data))
        match self.random.choice(["cut", "bit", "page"]):
            case "cut":
                del data[at:]
            case "bit":
                data[at] ^= 1 << self.random.randrange(8)
            case "page":
                first = at // 4096 * 4096
                size = len(data[first : first + 4096])
                data[first : first + size] = self.random.randbytes(size)
        path.write_bytes(data)
        self._damaged[entry.name] = bytes(data)
        self.tally.num_damaged += 1

    def _turns(self, history):
        """Returns the answers of all turns, shown or not, by the turn's number."""
        turns = {}
        for summary in history.summaries():
            record = history.record(summary.id)
            answers = {message.id: message.content for message in record.messages}
            turns |= {turn.id: answers[turn.answer] for turn in record.turns}
        return dict(sorted(turns.items()))

    def _check_answers(self, held, shown):
        held = iter(held)
        for text in filter(None, shown):
            assert any(answer.startswith(text) for answer in held), (
                f"{text!r} is not in the history"
            )

    def _check_objects(self, history, shown):
        """Each whole line of JSON is a turn that is stored as done, with just this result."""
        results = []
        for summary in history.summaries():
            results += [turn.result for turn in history.record(summary.id).turns if turn.result]
        for line in shown.split("\n")[:-1]:
            result = json.loads(line)
            assert result in results
            if result["verify"] is not None:
                self._check_exact(result)

    def _check_exact(self, result):
        assert result["verify"]["tokens_equal"]
        assert result["verify"]["max_abs_logit_diff"] <= VERIFY_LIMIT

    def _check_use(self, history):
        """The conversation can be searched and goes on."""
        with contextlib.suppress(HistoryError):
            restored = history.restore(history.newest("chat"))
            assert restored.conversation.head is None or restored.conversation.messages()
            self.tally.num_partial += bool(restored.partial)
        if self.random.random() < 0.2:
            history_search.search(history, ["alpha"])


def _half_written(folder):
    """The temporary files of prompt caches."""
    return [path.name for path in folder.glob(f"{TEMPORARY_PREFIX}*")]


def make_crash_test(home, seed):
    """Returns a test over a new history in `home`."""
    os.environ["MLXCHAT_HOME"] = str(home)
    assert history_path().is_relative_to(home)
    return CrashTest(home, seed)


__all__ = ["BUILT_IN", "SCRIPTED", "CrashTest", "History", "make_crash_test"]
