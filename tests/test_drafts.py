"""What follows the draft: its cost in the toolbar, what is handed over to be read, the supply."""

import subprocess
import time

import pytest
from chats import CTRL_C, CTRL_J, ENTER, chats, paste
from fakes import FakeSession

from mlxchat.chat.draft import DraftCost
from mlxchat.chat.session import ChatOptions
from mlxchat.cli.attachments import Attachment, Attachments
from mlxchat.cli.drafts import Drafts, TokenCounter, preview_message
from mlxchat.cli.power import PowerSupply, ask_pmset, read_supplies
from mlxchat.cli.render import format_cost, format_toolbar


@pytest.fixture
def session():
    session = FakeSession(None, ChatOptions())
    session.load().result()
    yield session
    session.close()


def wait_until(is_true):
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class Mains:
    is_battery = False


class Battery:
    is_battery = True


def follow(session, power=None, **options):
    """Returns drafts that expand `*`, and what counts their redraws."""
    redraws = []
    drafts = Drafts(
        session,
        options.pop("attached", Attachments()),
        lambda text: text.replace("*", "a paste"),
        lambda: redraws.append(1),
        power=power or Mains(),
        **options,
    )
    return drafts, redraws


# -- the message of a draft ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("hello wor", "hello wor"),
        ("", None),
        ("  \n", None),
        ("/help", None),
        (" /he", None),
        ("!ls", None),
        ("//help", None),
        ("a * b", "a a paste b"),
        ('"""/help @no', "/help @no"),
        ('"""\n/help\n"""', "/help"),
        ("look at @some/fi", "look at "),
        ("look at @some/file.txt now", None),
        ("me@here.org says", "me@here.org says"),
    ],
)
def test_the_message_of_a_draft(draft, message):
    """A draft becomes the message it would send; none where it is a command or names no file."""
    assert preview_message(draft, Attachments(), lambda t: t.replace("*", "a paste")) == message


def test_files_and_attachments_are_in_the_message(tmp_path, monkeypatch):
    """What is attached and what `@` names stand in the message as when it is sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("one\n")
    attached = Attachments()
    attached.add(Attachment("ls", "two\n", 4, "exit 0"))
    message = preview_message("read @notes.txt well", attached, str)
    assert message == attached.compose("read @notes.txt well", lambda t: None, lambda line: None)
    assert message is not None
    assert "one\n" in message
    assert "two\n" in message
    assert len(attached.pending) == 1


# -- following -------------------------------------------------------------------------------------


def test_a_draft_is_counted_and_read(session):
    """A draft has a cost, is handed over to be read, and is dropped when it is sent."""
    drafts, redraws = follow(session)
    drafts.change("one two three")
    wait_until(lambda: drafts.cost is not None and session.drafts)
    assert drafts.cost == DraftCost(3, 0.03, 3 / 512)
    assert session.drafts == ["one two three"]
    assert redraws
    drafts.sent()
    assert drafts.cost is None
    assert session.drafts == ["one two three", None]


def test_a_pause_is_told(session):
    """When no key comes for a moment the draft is handed over as one that may be sent so."""
    drafts, _ = follow(session)
    for text in ("o", "on", "one"):
        drafts.change(text)
    wait_until(lambda: session.still_drafts)
    assert session.still_drafts == ["one"]
    assert session.drafts == ["one"]
    drafts.change("/one")
    wait_until(lambda: drafts.cost is None)
    drafts.change("one two")
    wait_until(lambda: len(session.still_drafts) == 2)
    assert session.still_drafts == ["one", "one two"]


def test_a_command_costs_nothing(session):
    """When a draft becomes a command its cost goes away, and it is not read."""
    drafts, _ = follow(session)
    drafts.change("one two")
    wait_until(lambda: drafts.cost is not None and session.drafts)
    drafts.change("/one two")
    wait_until(lambda: drafts.cost is None)
    assert session.drafts == ["one two"]


def test_only_the_last_of_many_keys_is_looked_at(session):
    """Keys that follow each other quickly are one change."""
    drafts, _ = follow(session)
    for n in range(1, 60):
        drafts.change("word " * n)
    wait_until(lambda: drafts.cost is not None and drafts.cost.num_tokens == 59)
    wait_until(lambda: session.drafts[-1:] == ["word " * 59])
    assert len(session.drafts) <= 2


@pytest.mark.parametrize("options", [{"power": Battery()}, {"reads_ahead": False}])
def test_nothing_is_read_on_battery_or_when_switched_off(session, options):
    """On battery and by setting a draft has its cost but is not read."""
    drafts, _ = follow(session, **options)
    drafts.change("one two")
    wait_until(lambda: drafts.cost is not None)
    drafts.change("one two three")
    wait_until(lambda: drafts.cost is not None and drafts.cost.num_tokens == 3)
    assert session.drafts == []


def test_a_draft_typed_during_the_load_has_its_cost_after_it():
    """Before the model is there nothing is counted; then the cost comes without another key."""
    session = FakeSession(None, ChatOptions())
    drafts, redraws = follow(session)
    drafts.change("one two")
    wait_until(lambda: session.drafts)
    assert drafts.cost is None
    session.load().result()
    wait_until(lambda: drafts.cost is not None)
    assert redraws
    session.close()


def test_counting_again_counts_only_what_is_new(session):
    """The beginning of a long draft is counted once."""
    counter, counted = TokenCounter(), []

    def count(text):
        counted.append(text)
        return len(text)

    session.count_tokens = count
    text = "".join(f"line {n}\n" for n in range(1000))
    assert counter.count(session, text) == len(text)
    counted.clear()
    assert counter.count(session, text + "more") == len(text) + 4
    assert len(counted) == 1


def test_typing_at_the_prompt():
    """At the prompt every way to change the draft is followed; commands and `!` are not."""
    with chats() as make:
        chat = make()
        chat.run(f"hello{CTRL_J}{paste('line' + chr(10)) * 20}{ENTER}/help{ENTER}gone{CTRL_C}")
        assert chat.session.sent
        assert chat.session.drafts.count(None) == 2


# -- the toolbar -----------------------------------------------------------------------------------


def test_cost_in_words():
    """The cost says tokens, time and how full the context would be."""
    assert format_cost(DraftCost(412, 0.91, 0.23)) == "+412 tokens ≈ 0.9 s, 23 % of context"
    assert format_cost(DraftCost(4120, None, 0.5)) == "+4 120 tokens, 50 % of context"
    assert format_cost(DraftCost(4, 0.0, 1.2)) == "+4 tokens < 0.1 s, more than the context holds"


def test_the_cost_goes_before_what_fits_less(session):
    """In a narrow terminal model and cost stay."""
    cost = DraftCost(412, 0.91, 0.23)
    assert format_toolbar(session, None, "", 60, cost) == (
        "builtin · +412 tokens ≈ 0.9 s, 23 % of context"
    )
    assert " · 0 of 512 tokens" in format_toolbar(session, None, "", 90, cost)


# -- the power supply ------------------------------------------------------------------------------


def make_supply(folder, name, **files):
    (folder / name).mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(f"{text}\n")


def test_linux_supplies(tmp_path):
    """A machine is on battery when one of its own discharges and no cable feeds it."""
    assert not read_supplies(tmp_path / "none")
    assert not read_supplies(tmp_path)
    make_supply(tmp_path, "mouse", type="Battery", scope="Device", status="Discharging")
    assert not read_supplies(tmp_path)
    make_supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert read_supplies(tmp_path)
    make_supply(tmp_path, "AC", type="Mains", online="0")
    assert read_supplies(tmp_path)
    make_supply(tmp_path, "usb", type="USB", online="1")
    assert not read_supplies(tmp_path)


@pytest.mark.parametrize(("source", "is_battery"), [("Battery Power", True), ("AC Power", False)])
def test_mac_supply(tmp_path, source, is_battery):
    """MacOS says in the first line of `pmset -g batt` what it draws from."""
    program = tmp_path / "pmset"
    program.write_text(f"#!/bin/sh\necho \"Now drawing from '{source}'\"\necho 98%\n")
    program.chmod(0o755)
    assert ask_pmset(str(program)) == is_battery
    assert not ask_pmset(str(tmp_path / "none"))


def test_the_supply_is_asked_seldom(tmp_path, monkeypatch):
    """The answer holds for a while."""
    supply = PowerSupply(tmp_path, "linux")
    assert not supply.is_battery
    make_supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert not supply.is_battery
    now = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert supply.is_battery
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail("asked again"))
    assert PowerSupply(tmp_path, "linux").is_battery
