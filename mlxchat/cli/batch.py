"""`mlxchat generate --batch FILE`: a JSON object in, a JSON object out, line for line."""

import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mlxchat.chat.batch_lines import EXAMPLE, BatchLine, LineAnswer, read_lines
from mlxchat.chat.results import TurnResult
from mlxchat.cli.failures import Stopped, advise_generate, explain
from mlxchat.cli.options import Request
from mlxchat.cli.render import format_count, format_rate
from mlxchat.cli.screen import Screen
from mlxchat.cli.turn import TurnView, follow
from mlxchat.errors import MlxchatError, UsageError

STDIN = "-"
MOST_RUNS = 12  # of missing lines that are told


def run_batch(file: str, request: Request, size: int, screen: Screen, *, timing: bool) -> None:
    """Answers the lines of a file, in their order.

    Args:
        file: Its path, or `-` for stdin.
        request: What was asked for on the command line and in the settings.
        size: How many lines are decoded together.
        screen: Where to.
        timing: Say at the end how it went, also where nobody watches.

    Raises:
        MlxchatError: The file cannot be read, or lines failed.
        Stopped: By Ctrl-C; what was finished has been printed.
    """
    lines = read_lines(_read(file))
    if not lines:
        name = "stdin" if file == STDIN else file
        raise UsageError(f"there is no line in {name}; give one JSON object a line: {EXAMPLE}")
    is_limited = request.options.get("max_context") is not None
    view = _LinesView(screen, lines, is_limited=is_limited)
    sound = [line for line in lines if line.error is None]
    start = time.monotonic()
    try:
        if sound:
            with _without_history(request, size).opened(idle_work=False) as session:
                follow(lambda: session.answer_lines(sound, size), screen, view=view)
                if session.info is not None:
                    for text in session.info.notices:
                        screen.note(text)
    except Stopped:
        view.print_rest()
        screen.note(_format_stop(lines, view.answered))
        raise
    finally:
        view.print_rest()
    if timing or screen.shows_progress:
        screen.note(_format_summary(view.results, time.monotonic() - start))
    if view.num_failed:
        raise MlxchatError(
            f"{view.num_failed} of {len(lines)} lines failed; 'error' in their output says why"
        )


def _read(file: str) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read ({error.strerror}); give a file of JSON lines, or - for stdin"
        ) from None


def _without_history(request: Request, size: int) -> Request:
    """What is printed is the record; a draft model is of no use to answers decoded together."""
    options: dict[str, Any] = {**request.options, "keeps_history": False}
    if size > 1:
        options["draft_model"] = None
    return request._replace(options=options)


class _LinesView(TurnView):
    """Prints what came of lines in the order of the file, as soon as those before are printed."""

    def __init__(self, screen: Screen, lines: Sequence[BatchLine], *, is_limited: bool) -> None:
        super().__init__(screen, shows_text=False)
        self._next, self._is_limited = 0, is_limited
        self.answered: set[int] = set()  # by index
        self.results: list[TurnResult] = []
        self.num_failed = 0
        self._ready: dict[int, dict[str, Any]] = {}
        for line in lines:
            if line.error is not None:
                self._take(LineAnswer(line, error=line.error))
        self._print()

    def show(self, event: object) -> None:
        """Shows one event."""
        if isinstance(event, LineAnswer):
            self._take(event)
            self._print()
        else:
            super().show(event)

    def print_rest(self) -> None:
        """Prints what waits for lines that will not come any more."""
        for index in sorted(self._ready):
            self._screen.line(json.dumps(self._ready.pop(index)))

    def _print(self) -> None:
        while self._next in self._ready:
            self._screen.line(json.dumps(self._ready.pop(self._next)))
            self._next += 1

    def _take(self, answer: LineAnswer) -> None:
        line = answer.line
        self.answered.add(line.index)
        found: dict[str, Any] = {"index": line.index, "id": line.id}
        if answer.result is not None:
            self.results.append(answer.result)
            found |= answer.result.to_json()
        else:
            assert answer.error is not None
            self.num_failed += 1
            error = advise_generate(answer.error, is_limited=self._is_limited)
            found["error"] = str(explain(error))
        self._ready[line.index] = found


def _format_stop(lines: Sequence[BatchLine], answered: Collection[int]) -> str:
    """Returns one line on what Ctrl-C has left: which lines of the file are missing."""
    runs: list[list[int]] = []
    for line in lines:
        if line.index in answered:
            runs.append([])
        elif runs and runs[-1]:
            runs[-1][1:] = [line.number]
        else:
            runs.append([line.number])
    found = ["-".join(map(str, run)) for run in runs if run]
    text = f"stopped; {len(answered)} of {len(lines)} lines are answered"
    if not found:
        return text
    shown = found[:MOST_RUNS] + (["..."] if len(found) > MOST_RUNS else [])
    return f"{text}; of the file are missing: {', '.join(shown)}"


def _format_summary(results: Sequence[TurnResult], elapsed_s: float) -> str:
    """Returns one line on all answers."""
    tokens = sum(result.usage.completion_tokens for result in results)
    cached = sum(result.usage.cached_tokens for result in results)
    new = sum(result.usage.prefill_tokens for result in results)
    load_s = sum(result.timing.load_s for result in results)
    rate = format_rate(tokens / max(elapsed_s - load_s, 1e-9))
    plural = "" if len(results) == 1 else "s"
    return (
        f"{format_count(len(results))} answer{plural} · {format_count(tokens)} tokens"
        f" in {elapsed_s:.1f} s · {rate} tok/s"
        f" · reused {format_count(cached)}, read {format_count(new)}"
    )
