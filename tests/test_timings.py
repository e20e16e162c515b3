"""`mlxchat timings`: figures of the history as tables, charts of characters, a page and JSON."""

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
from dataclasses import replace

import pytest
from command_line import CommandLine
from pages import checked
from tiny import make_tiny_folder

from mlxchat import paths
from mlxchat.chat.timings import PHASES, TurnFigures, add_up, by_turn, places_of
from mlxchat.cli.charts import draw_points, draw_stacked
from mlxchat.cli.plots import format_bars, format_points, format_stacked, format_value, nice_ticks
from mlxchat.cli.render_timings import (
    Told,
    explain_reading,
    format_summary,
    format_timings,
    make_timings_page,
)

HOSTILE = "<script>alert(1)</script> & \x1b[31mred\x1b[0m"


run = CommandLine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def talked(folder):
    """Two conversations, of three turns and of one."""
    options = ["-m", folder, "--max-tokens", 8, "--seed", 5]
    run("chat", *options, text="one\nand two\nand three\n")
    run("generate", *options, HOSTILE)


def figures(number, **changes):
    """A turn of 100 tokens, of which 10 are read, whose parts take 1 s each."""
    values = {
        "conversation": 1,
        "number": number,
        "started_at": 0.0,
        "model": "m",
        "on": {"mlxchat": "1", "mlx": "2", "system": "Linux", "backend": "CPU"},
        "depth": 100 * number,
        "num_cached": 90,
        "num_read": 10,
        "num_idle": 5,
        "num_answer": 20,
        "source": "live",
        "reason": "reused 90, read 10",
        "ttft_s": 0.5,
        "total_s": 6.0,
        "load_s": 0.0,
        "phases_s": dict.fromkeys(PHASES, 1.0),
        "prefill_tok_per_s": 10.0,
        "decode_tok_per_s": 100.0,
        "peak_memory_bytes": 1,
        "kv_bytes": 1,
    }
    return TurnFigures(**{**values, **changes})


def test_json_holds_every_turn(talked):
    """The figures of the turns are those of the turns' own JSON, phases add up to the total."""
    data = json.loads(run("timings", "--all", "--json"))
    shown = json.loads(run("history", "show", 1, "--json"))
    assert [len(one["turns"]) for one in data["conversations"]] == [3, 1]
    assert data["machine"]["cores"] >= 1
    for turn, stored in zip(data["conversations"][0]["turns"], shown["turns"], strict=True):
        usage, timing = stored["result"]["usage"], stored["result"]["timing"]
        assert turn["depth"] == usage["prompt_tokens"]
        assert turn["num_cached"] + turn["num_read"] == turn["depth"]
        assert turn["ttft_s"] == timing["ttft_s"]
        assert turn["decode_tok_per_s"] == timing["decode_tok_per_s"]
        assert sum(turn["phases_s"].values()) == pytest.approx(timing["total_s"], abs=0.01)
    totals = data["totals"]
    assert totals["num_turns"] == 4
    assert totals["num_answer"] == sum(
        turn["num_answer"] for one in data["conversations"] for turn in one["turns"]
    )


def test_turns_know_what_they_were_measured_on(talked):
    """Versions, system and backend of each turn are kept with it, beside its settings."""
    turn = json.loads(run("history", "show", 1, "--json"))["turns"][0]
    assert turn["settings"]["on"].keys() == {"mlxchat", "mlx", "system", "backend"}
    assert all(turn["settings"]["on"].values())
    assert turn["settings"]["sampling"] == {"seed": 5}


def test_settings_are_said(folder):
    """What was set, and how the model decoded, stands beside the versions; each set once."""
    options = ["-m", folder, "--max-tokens", 4, "--temp", 0]
    run("chat", *options, "--kv-bits", 8, "--speculate", "off", text="one\nand two\n")
    run("chat", *options, "--speculate", "lookup", text="three\n")
    places = run("timings", "--all").split("Measured on\n")[1].replace("\n    ", " ")
    assert [line.rpartition("; ")[2] for line in places.splitlines()] == [
        "temperature 0.0, KV in 8 bits, speculation off",
        "temperature 0.0, speculation lookup",
    ]


def test_text(talked):
    """A conversation is shown turn by turn with its charts; nothing is wider than a terminal."""
    text = run("timings", 1)
    rows = text.splitlines()
    header = rows.index(next(row for row in rows if row.startswith("turn ")))
    assert [row.split()[0] for row in rows[header + 1 : header + 4]] == ["1", "2", "3"]
    for title in (
        "Time to first token by turn",
        "Tokens of the prompt by turn",
        "Decode rate by depth (tok/s)",
        "Where the time went",
        "Measured on",
    ):
        assert title in text
    end = rows.index("Measured on")  # names of models may be long
    assert max(map(len, rows[:end])) <= 81, max(rows[:end], key=len)
    assert "\x1b" not in text


def test_the_newest_is_the_default(talked):
    """Without a number it is the conversation with the newest turn, made harmless."""
    text = run("timings")
    assert text.startswith("Conversation 2: ")
    assert "\x1b" not in text


def test_all(talked):
    """All conversations have a row each, and medians over their turns."""
    text = run("timings", "--all")
    assert text.startswith("2 conversations\n")
    assert "Time to first token by turn (medians)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["9"], 1, "there is no conversation '9'"),
        (["1", "--all"], 2, "exclude each other"),
    ],
)
def test_refusals(talked, arguments, code, line):
    """What cannot be shown is refused in one line."""
    assert run("timings", *arguments, code=code) == ""
    assert line in run.stderr


def test_without_figures(tmp_path):
    """An imported conversation has no timings; the error says so."""
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([{"role": "user", "content": "hi"}]))
    run("history", "import", file)
    run("timings", code=1)
    assert "no turn in conversation 1 has timings" in run.stderr


# -- sums ----------------------------------------------------------------------------------------


def test_sums_and_medians():
    """Counts and phases add up; times and rates are medians, of the turns that have them."""
    turns = [
        figures(1, ttft_s=3.0, decode_tok_per_s=None),
        figures(2, ttft_s=1.0, decode_tok_per_s=50.0, load_s=2.0),
        figures(3, ttft_s=2.0),
    ]
    totals = add_up(turns)
    assert (totals.num_turns, totals.num_cached, totals.num_read) == (3, 270, 30)
    assert (totals.median_ttft_s, totals.median_tok_per_s) == (2.0, 75.0)
    assert totals.phases_s == dict.fromkeys(PHASES, 3.0)
    assert totals.load_s == 2.0


def test_speculation_is_told_where_there_was_some():
    """The summary says what share of the drafts stood, and nothing where none was made."""
    with_drafts = [figures(1, num_drafted=60, num_accepted=45), figures(2, num_drafted=40)]
    assert "45 % of 100 drafted tokens accepted" in format_summary(add_up(with_drafts))
    assert "drafted" not in format_summary(add_up([figures(1)]))


def test_many_turns_are_joined():
    """A chart has at most so many bars; every turn is in one of them."""
    turns = [figures(number) for number in range(1, 101)]
    spans = by_turn(turns, 24)
    assert len(spans) <= 24
    assert [turn.number for span in spans for turn in span.turns] == list(range(1, 101))
    assert (spans[0].label, spans[-1].label) == ("1-5", "96-100")
    assert [span.label for span in by_turn(turns[:3], 24)] == ["1", "2", "3"]


def test_places():
    """Each machine and version is named once; turns of old histories have none."""
    turns = [figures(1), figures(2), figures(3, on={})]
    assert places_of(turns) == [
        "m on CPU, Linux; mlxchat 1, mlx 2",
        "m: versions and machine were not kept",
    ]


# -- charts of characters ------------------------------------------------------------------------


def test_bars_are_in_proportion():
    """The longest bar fills the room, half the value is half the bar, more than 0 is visible."""
    bars = [("a", 8.0), ("b", 4.0), ("c", 0.001), ("d", 0.0)]
    lines = format_bars("T", bars, "s", 40).split("\n")
    lengths = [len(re.findall("[█▏▎▍▌▋▊▉]", line)) for line in lines[1:]]
    assert lengths[0] == 2 * lengths[1]
    assert lengths[2:] == [1, 0]
    assert max(map(len, lines)) <= 40


def test_stacked_bars_end_where_their_sum_does():
    """Parts are rounded so that equal sums have equal bars."""
    bars = [("a", (1.0, 1.0, 1.0)), ("b", (2.0, 0.5, 0.5)), ("c", (0.0, 0.0, 0.0))]
    lines = format_stacked("T", bars, ("x", "y", "z"), "s", 50).split("\n")
    counts = [[line.count(fill) for fill in "█▒░"] for line in lines[2:]]
    assert sum(counts[0]) == sum(counts[1])
    assert counts[2] == [0, 0, 0]
    assert counts[1][0] > counts[0][0]


def test_colours_only_where_they_are_seen():
    """Parts are coloured in a terminal alone."""
    bars = [("a", (1.0, 1.0))]
    assert "\x1b" not in format_stacked("T", bars, ("x", "y"), "s")
    assert "\x1b" in format_stacked("T", bars, ("x", "y"), "s", is_coloured=True)


def test_points_lie_where_they_should():
    """The largest is at the top right, the smallest at the bottom left; both axes are named."""
    lines = format_points("T", [(0.0, 0.0), (100.0, 10.0)], "depth", "tok/s", 40, 5).split("\n")
    assert lines[0] == "T (tok/s)"
    assert lines[1].endswith("•")
    assert lines[5][lines[5].index("│") + 1] == "•"
    assert "depth" in lines[-1]
    assert lines[-1].endswith("100")


@pytest.mark.parametrize("draw", [format_bars, format_stacked, format_points])
def test_nothing_to_show(draw):
    """An empty chart says that it is empty."""
    arguments = {format_bars: ("s",), format_stacked: (("x",), "s"), format_points: ("x", "y")}
    assert "nothing to show" in draw("T", [], *arguments[draw])


@pytest.mark.parametrize(
    ("value", "ticks"),
    [
        (0, [0, 1]),
        (0.03, [0, 0.01, 0.02, 0.03]),
        (0.038, [0, 0.01, 0.02, 0.03, 0.04]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (143, [0, 50, 100, 150]),
        (999, [0, 200, 400, 600, 800, 1000]),
        (1001, [0, 500, 1000, 1500]),
    ],
)
def test_axes_have_round_steps(value, ticks):
    """Steps are 1, 2 or 5 times a power of ten, five at most, and end at the value or above."""
    assert nice_ticks(value) == pytest.approx(ticks)


@pytest.mark.parametrize("power", range(-6, 8))
def test_axes_have_round_steps_everywhere(power):
    """Any value has two steps or more, and less than one of them is empty."""
    for digit in range(10, 100):
        value = digit * 10.0**power
        ticks = nice_ticks(value)
        assert 3 <= len(ticks) <= 6
        assert ticks[-2] < value <= ticks[-1] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12 346")],
)
def test_values_have_three_digits(value, text):
    """Values show the digits that matter."""
    assert format_value(value) == text


# -- page ----------------------------------------------------------------------------------------


def make_page(turns, title="a title"):
    return make_timings_page([Told(1, title, tuple(turns))], ["machine: a machine"])


def test_page_is_well_formed_and_fetches_nothing(talked, tmp_path):
    """The page closes what it opens, every chart is XML, and nothing points outside."""
    file = tmp_path / "page.html"
    assert run("timings", "--all", "--html", file) == ""
    assert run.stderr == f"Wrote {file}.\n"
    checker = checked(file.read_text())
    assert checker.names.count("svg") == 4
    assert checker.names.count("h2") == 7


def test_page_is_safe():
    """Titles, models and reasons of any kind are text."""
    turns = [figures(1, model=HOSTILE, reason=HOSTILE, source=HOSTILE), figures(2)]
    page = make_page(turns, HOSTILE)
    checked(page)
    assert "<script>" not in page
    assert "\x1b" not in page


def test_page_states_conditions_and_units():
    """Axes carry units; machine and versions are on the page; it knows light and dark."""
    page = make_page([figures(1), figures(2)])
    for text in (
        "time to first token, s",
        "decode rate, tok/s",
        "depth, tokens in the cache",
        "mlxchat 1, mlx 2",
        "machine: a machine",
        "prefers-color-scheme: dark",
    ):
        assert text in page


def test_only_what_needs_a_reason_gets_one():
    """Why more was read than the message stands apart from the counts, which have columns."""
    odd = figures(3, reason="reused 90 from disk, read 10 (/system: 1204 ids (all) are gone)")
    reasons = [explain_reading(turn) for turn in (figures(1), odd, figures(2, reason="other"))]
    assert reasons == ["", "/system: 1 204 ids (all) are gone", "other"]
    text = format_timings([Told(1, "t", (figures(1), odd))])
    assert "lay\nturn 3: /system: 1 204 ids (all) are gone\n\n" in text
    again = format_timings([Told(1, "t", (odd, replace(odd, number=5)))])
    assert "\nturns 3, 5: /system: 1 204 ids (all) are gone\n\n" in again
    many = [replace(odd, number=number) for number in (1, 3, 4, 5, 7, 8)]
    assert "\nturns 1, 3-5, 7-8: /system" in format_timings([Told(1, "t", tuple(many))])


def test_what_a_table_cannot_show_is_said():
    """Turns without figures are named; so is time that several answers at once count each."""
    apart = (figures(1), replace(figures(2), started_at=1.0))
    text = format_timings([Told(1, "t", apart)])
    assert "no figures" not in text
    assert "several at a time" not in text
    together = (*apart, replace(figures(4), started_at=1.0))
    told = [Told(1, "t", together, (3, 5))]
    text, page = format_timings(told), make_timings_page(told, [])
    for shown in (text, page):
        assert "turns 3, 5: no figures; stopped, failed or stripped" in shown
        assert "2 answers came several at a time, and the time of each counts" in shown


def test_a_stopped_turn_has_no_figures(folder):
    """Its number is missing in the table, and said below."""
    run("chat", "-m", folder, "--max-tokens", 4, text="one\ntwo\nthree\n")
    with contextlib.closing(sqlite3.connect(paths.data_dir() / "history.db")) as db, db:
        db.execute("UPDATE turns SET state = 'failed', result = NULL WHERE id = 2")
    assert "\nturn 2: no figures; stopped, failed or stripped\n" in run("timings")


@pytest.mark.parametrize("width", [80, 100])
def test_conversations_fit_the_width(width):
    """Long titles and names of models are cut; what it was measured on is broken."""
    on = {
        "mlxchat": "0.1.0",
        "mlx": "0.32.4",
        "system": "Linux x86_64",
        "backend": "CPU (OpenBLAS)",
    }
    turn = replace(figures(1), on=on, settings="temperature 1.5, KV in 8 bits, speculation off")
    told = [Told(number, "a long title " * 9, (turn,)) for number in (1, 22)]
    text = format_timings(told, width=width)
    assert max(map(len, text.splitlines())) <= width + 1


def test_a_share_of_all_is_all():
    """What is nearly all is not said to be all; one token is one; no rate is none."""
    turn = replace(figures(1), num_cached=9999, num_read=1, num_answer=1, decode_tok_per_s=None)
    text = format_summary(add_up([turn]))
    assert text.startswith("9 999 (99 %) of 10 000 prompt tokens reused, 1 read")
    assert text.endswith("\n1 token answered; medians: first token 0.50 s")
    assert "turn 1:" not in text


def test_a_phone_can_read_the_page():
    """Pictures stay large enough and scroll; short cells stay on one line, long ones get room."""
    page = make_page([figures(1), figures(2, reason="reused 0, read 10 (" + "word " * 20 + ")")])
    assert page.count('style="min-width:608px"') == 4
    assert page.count('<td class="long">word word') == 1
    assert "white-space: nowrap" in page


def test_bars_of_a_page_are_in_proportion():
    """Heights of bars are to each other as their values."""
    drawing = draw_stacked([("1", [1.0]), ("2", [2.0])], ("x",), "turn", "s")
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', drawing)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)


def test_points_of_a_page_lie_where_they_should():
    """A point at half of both axes lies in the middle; groups have a legend."""
    drawing = draw_points([("a", [(50.0, 5.0), (100.0, 10.0)]), ("b", [(0.0, 0.0)])], "x", "y")
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawing)
    xs, ys = ([float(value) for value in values] for values in zip(*circles, strict=True))
    assert xs[0] == pytest.approx((xs[1] + xs[2]) / 2, abs=0.2)
    assert ys[0] == pytest.approx((ys[1] + ys[2]) / 2, abs=0.2)
    assert ">a</text>" in drawing


def test_many_turns_make_a_page():
    """Three hundred turns are joined to bars that fit, on the page and in the terminal."""
    turns = [replace(figures(number), ttft_s=number / 100) for number in range(1, 301)]
    checked(make_page(turns))
    text = format_timings([Told(1, "t", tuple(turns))])
    assert "Time to first token by turn (medians)" in text
    assert "Tokens of the prompt by turn (means)" in text
    assert text.count(" 100 tokens") == 24  # what a turn has, not what a span adds up to


def test_browser_shows_the_page(tmp_path):
    """A real browser draws the charts, in light and in dark, and asks no server for anything."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome to open the page")
    file = tmp_path / "page.html"
    file.write_text(make_page([figures(number) for number in range(1, 9)]))
    pictures = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        picture = tmp_path / f"{name}.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1200"]
        command += [f"--blink-settings=preferredColorScheme={scheme}"]
        command += [f"--screenshot={picture}", file.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        pictures[name] = picture.read_bytes()
        assert pictures[name].startswith(b"\x89PNG")
        assert len(pictures[name]) > 10_000
    assert pictures["light"] != pictures["dark"]
    dumped = subprocess.run(
        [*command[:-2], "--dump-dom", file.as_uri()], check=True, capture_output=True, timeout=240
    ).stdout.decode()
    assert dumped.count("<circle") == 8
