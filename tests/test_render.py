"""Text for people: what is safe to print, and golden reports."""

from dataclasses import replace

import pytest
from fakes import FakeSession, make_result
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.chat.read_ahead import DraftCost
from mlxchat.chat.results import CacheUse, LoadProgress, PrefillProgress, Speculation, Verify
from mlxchat.chat.session import ChatOptions
from mlxchat.cli import render, render_turn, render_views

# What a terminal obeys or what turns the reading direction over.
FORBIDDEN = {
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
} - {"\n", "\t"}


@given(st.text(st.characters(codec=None)))
def test_sanitize_any_text(text):
    """No control character, C1 control, bidirectional override or lone surrogate gets through."""
    safe = render.sanitize(text)
    assert not FORBIDDEN & set(safe)
    safe.encode()


@given(st.text(st.sampled_from("\x1b[]m31;\x07\x9b\ra\n")), st.integers(0, 50))
def test_sanitize_pieces(text, cut):
    """A text cut anywhere is as safe in two pieces as in one, and comes out the same."""
    assert render.sanitize(text[:cut]) + render.sanitize(text[cut:]) == render.sanitize(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs"))))
def test_sanitize_keeps_text(text):
    """Letters, marks, signs and emoji of every script stay as they are."""
    assert render.sanitize(text + "\n\t") == text + "\n\t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "␛[2J"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b31m", "<U+009B>31m"),
        ("a\x7f", "a␡"),
        ("\u202eevil", "<U+202E>evil"),
        ("one\r\ntwo\rx", "one\ntwox"),
        ("\ud800", "\ufffd"),
        ("👩‍👩‍👧 שלום\u200f", "👩‍👩‍👧 שלום\u200f"),
    ],
)
def test_sanitize_examples(text, shown):
    """What is taken away can be seen; joiners and direction marks of honest text stay."""
    assert render.sanitize(text) == shown


def test_one_line():
    """An error stays on its line whatever the text in it holds."""
    assert render.one_line("a\n b\t\x1b[0m  c") == "a b ␛[0m c"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.000 s"),
        (0.083, "0.083 s"),
        (0.5, "0.50 s"),
        (4.24, "4.2 s"),
        (42.4, "42 s"),
        (125, "2 min 05 s"),
    ],
)
def test_format_seconds(seconds, text):
    """A duration has the digits that matter at its size."""
    assert render.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_format_bytes(size, text):
    """A size is in the binary unit that suits it."""
    assert render.format_bytes(size) == text


@pytest.mark.parametrize(("rate", "text"), [(None, "-"), (54.06, "54.1"), (1612.9, "1 613")])
def test_format_rate(rate, text):
    """A rate has one decimal below a hundred."""
    assert render.format_rate(rate) == text


@pytest.mark.parametrize(
    ("event", "elapsed_s", "line"),
    [
        (
            PrefillProgress(400, 2000),
            0.5,
            "reading ██░░░░░░ 400 of 2 000 tokens · 800 tok/s · 2.0 s left",
        ),
        (PrefillProgress(0, 2000), 0.0, "reading ░░░░░░░░ 0 of 2 000 tokens"),
        (
            LoadProgress("download", 1 << 20, 4 << 20),
            1.0,
            "downloading ██░░░░░░ 1.0 MiB of 4.0 MiB · 1.0 MiB/s · 3.0 s left",
        ),
        (LoadProgress("load", 0, 4 << 20), 1.0, "loading ░░░░░░░░ 0 B of 4.0 MiB"),
        (LoadProgress("warm-up", 2, 5), 1.0, "warming up ███░░░░░ 2/5"),
    ],
)
def test_format_progress(event, elapsed_s, line):
    """Progress says what is done, how fast, and what is left."""
    assert render.format_progress(event, elapsed_s) == line


def test_turn_line():
    """After an answer: tokens, time to first token, rate with its depth, reused and read."""
    assert render_turn.format_turn_line(make_result()) == (
        "312 tokens · ttft 0.08 s · 54.1 tok/s at depth 2 310 (81 % of bandwidth)"
        " · reused 2 290, read 20"
    )


def test_an_answer_that_begins_at_once():
    """Where nothing was left to read, the time to the first token keeps its digits."""
    line = render_turn.format_turn_line(make_result(ttft_s=0.0018))
    assert line.startswith("312 tokens · ttft 0.002 s · 54.1 tok/s")


def test_turn_line_says_why():
    """The line names what ended the answer and why reuse fell short."""
    result = make_result(
        stop_reason="token_limit",
        cache=CacheUse("checkpoint", "reused 2290, read 20 (why)"),
        decode_tok_per_s=None,
        bandwidth_use=None,
    )
    assert render_turn.format_turn_line(result) == (
        "312 tokens (stopped at the token limit) · ttft 0.08 s · reused 2 290, read 20 (why)"
    )


TIMING = """\
phase         seconds   tokens     tok/s
load            0.412
template        0.001    2 310
restore         0.000    2 290            live
prefill         0.012       20     1 613
first token     0.081                     since the message was sent
decode          5.770      312      54.1  p50 18.2, p95 19.0, max 30.1 ms
total           5.851
memory: peak 1.2 GiB, weights 921.6 MiB, KV 12.0 MiB; 81 % of the measured bandwidth
cache: reused 2 290, read 20"""


def test_timing_report():
    """The report has every phase with its time, tokens and rate, and fits into 80 columns."""
    assert render_turn.format_timing(make_result()) == TIMING
    assert max(map(len, TIMING.split("\n")[:-2])) <= 80


def test_timing_report_of_an_empty_answer():
    """Missing figures are left out, idle work and the cache's reason are named."""
    report = render_turn.format_timing(
        make_result(
            decode_tok_per_s=None,
            prefill_tok_per_s=None,
            inter_token_ms={"p50": None, "p95": None, "max": None},
            bandwidth_use=None,
            settle_tokens=7,
            typeahead_tokens=1500,
            cache=CacheUse("none", "first turn"),
        )
    )
    assert "54.1" not in report
    assert "of the measured bandwidth" not in report
    assert "idle time: 7 tokens read after the last answer, 1 500 while typing" in report
    assert report.endswith("cache: first turn")


def test_verify_line():
    """--verify says plainly whether the tokens are equal."""
    assert render_turn.format_verify(Verify(True, 1.5e-6, (1, 2, 3))) == (
        "verify: tokens equal a from-scratch prefill of 3 tokens, logits differ by at most 1.5e-06"
    )
    differs = render_turn.format_verify(Verify(False, 2.0, (1,), holds=False))
    assert "DIFFER" in differs
    assert differs.endswith("more than rounding explains")


def test_wrap_parts():
    """A wide line breaks at its dots; no part is lost or cut."""
    assert render.wrap_parts("aaa · bbb · ccc", 9) == "aaa · bbb\nccc"
    assert render.wrap_parts("aaa · bbbbbbbbbbbb · ccc", 9) == "aaa\nbbbbbbbbbbbb\nccc"
    assert render.wrap_parts("", 9) == ""


def test_wrap_words():
    """A line is broken between words, but not inside of a number with its thousands apart."""
    line = "reads 700 of 21 000 tokens, 23 % of all"
    assert render.wrap_words(line, len(line)) == line
    assert render.wrap_words(line, 15) == "reads 700 of\n21 000 tokens,\n23 % of all"
    assert render.wrap_words(line, 31) == "reads 700 of 21 000 tokens,\n23 % of all"


def test_wrap_words_counts_columns():
    """Wide characters take two columns and may be broken anywhere; a path is left whole."""
    assert render.wrap_words("你好世界，再见。", 8) == "你好世\n界，再\n见。"
    assert render.wrap_words("read ❤️ and 猫 too", 9) == "read ❤️\nand 猫\ntoo"
    assert (
        render.wrap_words("see /a/very/long/path.txt now", 9) == "see\n/a/very/long/path.txt\nnow"
    )
    assert render.cut("你好世界", 7) == "你好世…"
    assert render.cut("hello", 4) == "hel…"


def test_wrap_cells():
    """What does not fit of a row of a table stands under one of its columns in the left half."""
    assert render.wrap_cells("temp  0.7  the model's own choice", 24) == (
        "temp  0.7  the model's\n           own choice"
    )
    assert render.wrap_cells("  you: " + "word " * 6, 20).split("\n")[1].startswith("  word")
    assert render.wrap_cells("name  value", 20) == "name  value"


def test_toolbar_in_a_narrow_terminal():
    """The cost of the draft goes before the model's name, and the figures before their bar."""
    session, cost = FakeSession(None, ChatOptions()), DraftCost(12, 0.94, 0.2)
    try:
        session.load().result()
        assert render.format_toolbar(session, None, "", 40, cost) == (
            "+12 tokens ≈ 0.9 s, 20 % of context"
        )
        assert (
            render.format_toolbar(session, None, "", 40)
            == "builtin · 0 of 512 tokens (0 %) ░░░░░░░░"
        )
        assert render.format_toolbar(session, None, "", 35) == "builtin · 0 of 512 tokens (0 %)"
        assert render.format_toolbar(session, None, "", 12) == "builtin"
    finally:
        session.close()


@pytest.mark.parametrize("model", [None, "mlx-community/Qwen3-4B-4bit"])
def test_banner(model):
    """The banner fits into 80 columns; the built-in model's says how to get a real one."""
    banner = render.format_banner("0.1.0", model)
    assert max(map(len, banner.split("\n"))) <= 80
    assert ("mlxchat -m mlx-community/" in banner) == (model is None)


def test_toolbar_and_stats():
    """Toolbar and /stats name the model, the context used and the last rate."""
    session = FakeSession(None, ChatOptions())
    try:
        assert render.format_toolbar(session, None, "") == "built-in model · loading"
        assert render.format_toolbar(session, "a\x1b", "loading 3") == "a␛ · loading 3"
        assert render_views.format_stats(session) == "turns    0\ncontext  0 tokens"
        session.send("hello").result()
        assert (
            render.format_toolbar(session, None, "")
            == "builtin · 10 of 512 tokens (2 %) ░░░░░░░░ · 54.1 tok/s · 934 MiB · 2 290 cached"
        )
        assert render_views.format_stats(session) == (
            "model    builtin (fake, 3.0 M parameters)\n"
            "backend  CPU (fake)\n"
            "weights  3.8 MiB\n"
            "load     0.010 s\n"
            "turns    1\n"
            "context  10 of 512 tokens\n\n" + TIMING
        )
    finally:
        session.close()


@pytest.mark.parametrize(
    ("kind", "forced", "expected"),
    [
        ("lookup", 0, "lookup saved 1.5 s (75 % accepted)"),
        ("lookup", 8, "grammar saved 1.5 s (75 % accepted)"),
        ("draft", 3, "grammar and draft saved 1.5 s (75 % accepted)"),
    ],
)
def test_what_foresaw_tokens(kind, forced, expected):
    """The line names the grammar where it left no choice; the JSON names the drafter."""
    told = Speculation(kind, 8, 6, 1.5, forced)
    assert render_turn.format_speculation(told) == expected
    assert told.to_json() == {"kind": kind, "drafted": 8, "accepted": 6}


@pytest.mark.parametrize("saved_s", [0.0004, -0.0004, 0.002])
def test_what_nothing_was_gained_by_is_not_told(saved_s):
    """Speculation stands in the line after an answer where it saved or cost a millisecond."""
    result = replace(make_result(), speculation=Speculation("lookup", 8, 6, saved_s))
    assert ("lookup" in render_turn.format_turn_line(result)) is (saved_s == 0.002)
