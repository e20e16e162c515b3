"""Looking inside while a conversation goes on: what is shown, and that nothing is disturbed."""

import io
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlxchat.model.device import load_mlx

mx = load_mlx()

from tiny import KEEPS_REASONING, KINDS, TinySession, make_tiny_folder  # noqa: E402

from mlxchat.chat.live_text import LiveText  # noqa: E402
from mlxchat.cli.inspect.paint import make_console  # noqa: E402
from mlxchat.cli.inspect.render_live import Explained, make_attention_view  # noqa: E402
from mlxchat.cli.main import cli  # noqa: E402
from mlxchat.cli.screen import Screen  # noqa: E402
from mlxchat.cli.slash import Context, interpret  # noqa: E402
from mlxchat.engine.worker import JobCancelledError  # noqa: E402
from mlxchat.errors import MlxchatError, UnsupportedModelError, UsageError  # noqa: E402
from mlxchat.lens.attention import read_attention  # noqa: E402
from mlxchat.lens.edits import Add  # noqa: E402
from mlxchat.lens.live import Source, Why, explain, hardest, read_confidence  # noqa: E402
from mlxchat.lens.trace import trace  # noqa: E402

LOOKS = ("/lens", "/attention", "/why", "/confidence")
QUESTIONS = ("What is the capital of Norway?", "And of France?", "hello there")


def look(session: Any, line: str, screen: Screen | None = None) -> str:
    """Runs a slash command and returns what it says."""
    said: list[str] = []
    assert interpret(Context(session, said.append, screen=screen), line) is None
    return "\n".join(said)


def live(session: Any) -> LiveText:
    found: LiveText = session.look(lambda text: text).result(30)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_folder(tmp_path / "tiny")


@pytest.mark.parametrize("idle_work", [False, True])
@pytest.mark.parametrize("kind", ["full", "window"])
def test_looking_leaves_the_next_turns_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, idle_work: bool
) -> None:
    """With and without looks between them the turns read, reuse and answer the same."""
    assert kind in KINDS
    folder = make_tiny_folder(tmp_path / "tiny", kind)
    seen: list[list[Any]] = []
    for looks in ((), LOOKS):
        monkeypatch.setenv("MLXCHAT_HOME", str(tmp_path / f"home{len(looks)}"))
        session = TinySession(folder, kind, idle_work=idle_work)
        turns = []
        for question in QUESTIONS:
            result = session.say(question)
            if looks:
                session.wait_until_idle()
                held = list(session.prefix.token_ids)
                for line in looks:
                    assert look(session, line)
                session.wait_until_idle()
                assert session.prefix.token_ids == held
            session.wait_until_idle()
            turns.append((result.tokens, result.text, result.usage))
        session.close()
        seen.append(turns)
    assert seen[0] == seen[1]


def test_the_text_is_what_was_read_and_written(folder: Path) -> None:
    """Prompt and answer are the ids that the turn had, in place."""
    session = TinySession(folder)
    for question in QUESTIONS[:2]:
        result = session.say(question)
        text = live(session)
        assert result.verify is not None
        assert text.token_ids[: text.start] == result.verify.prompt_ids
        assert text.token_ids[text.start : text.end] == result.tokens
    session.close()


def test_thinking_that_is_kept_is_part_of_the_answer(tmp_path: Path) -> None:
    """With a template that keeps thinking, the answer as the model sees it is looked at."""
    folder = make_tiny_folder(tmp_path / "tiny", template=KEEPS_REASONING)
    session = TinySession(folder, keep_thinking=True)
    session.say("hello")
    text = live(session)
    assert 0 < text.start < text.end == len(text.token_ids)
    session.close()


def test_before_an_answer_there_is_nothing_to_see(folder: Path) -> None:
    """Without an answer each look says what to do, and the chat goes on."""
    session = TinySession(folder)
    for line in LOOKS:
        with pytest.raises(UsageError, match="no answer yet"):
            look(session, line)
    assert session.say("hello").tokens
    with pytest.raises(UsageError, match="the conversation has no 'Zanzibar'"):
        look(session, "/why Zanzibar")
    session.close()


def test_confidence_is_the_probability_at_temperature_1(folder: Path) -> None:
    """Each token's probability is that of a whole pass, wherever the reading starts."""
    session = TinySession(folder)
    session.say("hello")
    text = live(session)

    def work(_: Any) -> tuple[list[float], list[float]]:
        logits = trace(text.model, text.token_ids).logits
        assert logits is not None
        probs = mx.softmax(logits.astype(mx.float32), axis=-1)
        answer = range(text.start, text.end)
        slow = [probs[p - 1, text.token_ids[p]].item() for p in answer]
        found = read_confidence(text.model, text.token_ids, text.start)
        return [r.prob for r in found], slow

    fast, slow = session._worker.run(work)
    assert fast == pytest.approx(slow, abs=1e-5)
    assert len(fast) == text.end - text.start
    session.close()


def test_reasons_are_those_of_the_maps(folder: Path) -> None:
    """Sources are the mean looks of the place where the token was chosen; rank is the token's."""
    session = TinySession(folder)
    session.say("hello there")
    text = live(session)
    position = text.end - 1

    def work(_: Any) -> None:
        why = explain(text.model, text.token_ids, position, count=3)
        maps = mx.array(read_attention(text.model, text.token_ids[:position]).maps)[:, :, -1]
        mean = maps.mean((0, 1))
        last = position - 1
        allowed = range(1, last)
        best = sorted(allowed, key=lambda p: -mean[p].item())[:3]
        assert [s.position for s in why.sources] == best
        for source in why.sources:
            assert source.weight == pytest.approx(mean[source.position].item(), abs=1e-5)
            layer, head, weight = source.best
            assert weight == pytest.approx(maps[layer, head, source.position].item(), abs=1e-5)
            assert weight == pytest.approx(maps[:, :, source.position].max().item(), abs=1e-5)
        assert why.resting == pytest.approx((mean[0] + mean[last]).item(), abs=1e-5)
        logits = trace(text.model, text.token_ids[:position]).logits
        assert logits is not None
        own = logits[-1, text.token_ids[position]]
        assert why.lens.layers[-1][0].rank == 1 + int((logits[-1] > own).sum().item())

    session._worker.run(work)
    session.close()


def test_the_hardest_word_rose_most(folder: Path) -> None:
    """Of the allowed tokens the one whose log-probability grew most is taken."""
    session = TinySession(folder)
    session.say("hello there")
    text = live(session)

    def work(_: Any) -> None:
        answer = range(text.start, text.end)
        seen = trace(text.model, text.token_ids)
        rises = []
        for p in answer:
            target = text.token_ids[p]
            logs = []
            for layer in range(text.model.info.n_layers):
                logits = text.model.unembed(seen["resid_post", layer][None, p - 1 : p])[0, 0]
                logs.append((logits[target] - mx.logsumexp(logits)).item())
            rises.append(max(logs[-1], math.log(1e-12)) - max(logs[0], math.log(1e-12)))
        found = hardest(text.model, text.token_ids, text.start, list(answer))
        assert rises[found - text.start] == pytest.approx(max(rises), abs=1e-4)

    session._worker.run(work)
    session.close()


def test_a_model_that_cannot_says_why(folder: Path) -> None:
    """On a model whose blocks are hidden a look is one line, and the chat goes on."""
    session = TinySession(folder, "recurrent")
    session.model_.points = frozenset()
    session.say("hello")
    for line in LOOKS:
        with pytest.raises(UnsupportedModelError, match="cannot be read"):
            look(session, line)
    assert session.say("and again").tokens
    session.close()


def test_a_screen_draws_the_views(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a screen the views go to the notes, without colours where there is no terminal."""
    import sys

    session = TinySession(folder)
    session.say("hello")
    screen = Screen(sys.stdout, sys.stderr)
    for line in LOOKS:
        assert look(session, line, screen) == ""
        shown = capsys.readouterr()
        assert shown.out == ""
        assert len(shown.err.splitlines()) >= 3
        assert "\x1b" not in shown.err
    session.close()


def test_a_piped_chat_looks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe the looks go to stderr; stdout has the answers alone."""
    monkeypatch.setenv("MLXCHAT_HOME", str(tmp_path))
    lines = ["What is the capital of Norway?", "/why Oslo", "/lens", "/confidence", "/attention"]
    arguments = ["chat", "--temp", "0", "--json", "--no-history"]
    done = CliRunner().invoke(cli, arguments, input="\n".join(lines) + "\n")
    assert done.exit_code == 0, done.stderr
    assert "Oslo" in json.loads(done.stdout)["text"]
    assert "settled it" in done.stderr
    assert "Norway" in done.stderr
    assert "mean probability" in done.stderr


def test_a_fault_in_a_look_is_no_crash(folder: Path) -> None:
    """What a look raises reaches the person; the session works on."""
    session = TinySession(folder)
    session.say("hello")

    def fail(_: LiveText) -> None:
        raise MlxchatError("no luck; try again")

    with pytest.raises(MlxchatError, match="no luck"):
        session.look(fail).result(10)
    assert session.say("more").tokens
    session.close()


def test_a_steered_answer_is_read_as_it_was_made(folder: Path) -> None:
    """While something steers the model, looks read the steered model."""
    session = TinySession(folder)
    session.say("hello")
    plain = look(session, "/confidence")

    def steer(_: Any) -> None:
        session.runner.engine.taps = Add({0: mx.linspace(-3, 3, 16)})

    session._worker.run(steer)
    assert look(session, "/confidence") != plain
    text = live(session)

    def work(_: Any) -> None:
        logits = trace(text.model, text.token_ids, edits=text.taps).logits
        assert logits is not None
        probs = mx.softmax(logits, axis=-1)
        slow = [probs[p - 1, text.token_ids[p]].item() for p in range(text.start, text.end)]
        found = read_confidence(text.model, text.token_ids, text.start, edits=text.taps)
        assert [r.prob for r in found] == pytest.approx(slow, abs=1e-5)

    session._worker.run(work)
    session.close()


def test_a_look_can_be_stopped(folder: Path) -> None:
    """A cancelled look ends at the next block, and the next turn is as it would have been."""
    session, other = TinySession(folder), TinySession(folder)
    for one in (session, other):
        one.say("hello")
    passes: list[int] = []
    ready = threading.Event()

    def work(text: LiveText) -> None:
        ready.wait(20)
        for _ in range(1000):
            passes.append(1)
            job.cancel()
            trace(text.model, text.token_ids, edits=text.taps)

    job = session.look(work)
    ready.set()
    with pytest.raises(JobCancelledError):
        job.result(30)
    assert len(passes) <= 1
    assert session.say("and now?").tokens == other.say("and now?").tokens
    session.close()
    other.close()


@pytest.mark.parametrize(("n_layers", "width"), [(6, 80), (36, 80), (36, 120)])
def test_what_was_looked_at_fits_the_screen(n_layers: int, width: int) -> None:
    """With long tokens and many layers no column is cut off, whatever gives way."""
    texts = ["<|im_start|>", " extraordinarily", " long", "<|im_end|>", "\n", " x"]
    course = tuple(n / n_layers for n in range(n_layers))
    sources = tuple(Source(p, 0.25, course, (n_layers - 1, 12, 0.99)) for p in range(5))
    found = Explained(Why(5, None, sources, 0.25), texts, {}, 0)  # type: ignore[arg-type]
    out = io.StringIO()
    console = make_console(out, width=width, colours=False)
    console.print(*make_attention_view(found, console), sep="\n")
    rows = out.getvalue().split("\n")
    assert rows[1].split() == ["token", "in", "by", "layer", "weight", "most", "in"]
    assert sum(f"layer {n_layers - 1} head 12: 0.99" in row for row in rows) == 5
    assert max(map(len, rows)) <= width


def test_what_was_looked_at_on_a_narrow_screen() -> None:
    """In 40 columns the token, its weight and the head are whole; the rest is left out."""
    texts = ["<|im_start|>", " extraordinarily", " x"]
    sources = tuple(Source(p, 0.25, (0.5,), (35, 12, 0.99)) for p in range(2))
    found = Explained(Why(2, None, sources, 0.25), texts, {}, 0)  # type: ignore[arg-type]
    out = io.StringIO()
    console = make_console(out, width=40, colours=False)
    console.print(*make_attention_view(found, console), sep="\n")
    assert [row.rstrip() for row in out.getvalue().split("\n")[1:4]] == [
        "token         weight  most in",
        "<|im_start|>   0.250  layer 35 head 12",
        "·extraordin…   0.250  layer 35 head 12",
    ]
