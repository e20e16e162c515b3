"""`/set` and `/params`: names, values, and who chose them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.chat.session import ChatOptions, Session
from mlxchat.cli import slash
from mlxchat.cli.options import read_request
from mlxchat.cli.parameters import NAMES, PARAMETERS, change, find_name, list_parameters
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import UsageError
from mlxchat.settings import settings_path


@pytest.fixture(scope="module")
def session():
    """The built-in model."""
    session = Session(None, ChatOptions(max_tokens=8))
    yield session
    session.close()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temp", "0", 0.0),
        ("TEMPERATURE", "1.5", 1.5),
        ("top_p", "1", 1.0),
        ("top-k", "40", 40),
        ("seed", "default", None),
        ("presence-penalty", "-2", -2.0),
        ("max-tokens", "100", 100),
        ("think", "off", False),
        ("think", "default", None),
        ("verify", "on", True),
    ],
)
def test_values(name, text, value):
    """Names have aliases; values are numbers in bounds, on and off, or the default."""
    name = find_name(name)
    parameter = PARAMETERS[name]
    assert parameter.parse(name, text) == value
    options = change(ChatOptions(), parameter, value)
    places = (options, options.sampling)
    assert [getattr(p, parameter.field) for p in places if hasattr(p, parameter.field)] == [value]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("temp", "-1", "temp -1 is not allowed; give a number >= 0 or default"),
        ("top-p", "0", "give a number in (0, 1] or default"),
        ("top-k", "1.5", "give a whole number >= 0 or default"),
        ("temp", "nan", "is not allowed"),
        ("presence-penalty", "3", "give a number in [-2, 2] or default"),
        ("think", "maybe", "think maybe is not allowed; give on or off or default"),
        ("verify", "default", "give on or off"),
    ],
)
def test_wrong_values(name, text, part):
    """A wrong value is refused with what is allowed."""
    with pytest.raises(UsageError) as caught:
        PARAMETERS[name].parse(name, text)
    assert part in str(caught.value)


@given(st.sampled_from(sorted(PARAMETERS)), st.text(max_size=8))
def test_any_value(name, text):
    """Any text is a value in bounds or refused in one line."""
    parameter, refusal, value = PARAMETERS[name], "", None
    try:
        value = parameter.parse(name, text)
    except UsageError as error:
        refusal = str(error)
    assert not refusal or "; give " in refusal
    if parameter.bounds is not None and value is not None:
        assert parameter.bounds.allow(value)


def test_unknown_names():
    """An unknown name is refused with the nearest, or with all."""
    with pytest.raises(UsageError, match="top-q is no setting; did you mean top-p"):
        find_name("top-q")
    with pytest.raises(UsageError, match=r"known are temp, .*max-file-kib"):
        find_name("xyzzy")


def test_who_chose():
    """The command line goes before config.toml; what nobody chose has its default."""
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text(
        "[sampling]\ntemperature = 0.5\ntop_k = 9\n[files]\nmax_kib = 7\n[keys]\nmode = 'vi'\n"
        "[engine]\nkv_bits = 4\n"
    )
    request = read_request({"top_k": 3, "think": False, "min_p": None, "verify": False})
    assert request.settings.keys == "vi"
    sampling = SamplingSettings(**request.sampling)
    assert request.options["kv_bits"] == 4
    session = Session(None, ChatOptions(sampling=sampling, think=False, kv_bits=4))
    try:
        context = slash.Context(session, print, origins=request.origins)
        rows = {name: rest for name, *rest in list_parameters(context)}
    finally:
        session.close()
    assert list(rows) == list(NAMES)
    assert rows["temp"] == ["0.5", "config.toml"]
    assert rows["top-k"] == ["3", "command line"]
    assert rows["think"] == ["off", "command line"]
    assert rows["min-p"] == ["not known yet", "the model is loading"]
    assert rows["max-tokens"] == ["what the context holds", "default"]
    assert rows["max-file-kib"] == ["256", "config.toml"]
    assert rows["kv-bits"] == ["4", "config.toml"]


def test_a_session(session):
    """What is set is in force in the next turn; the model's own choice comes back."""
    assert session.resolve_sampling() is session.count_tokens("x") is session.last_answer() is None
    said = []
    context = slash.Context(session, said.append)
    session.load().result()
    before, by_model = session.resolve_sampling()
    assert session.resolve_sampling()[0]["seed"] == before["seed"]
    for line in ("/set temp 0", "/set seed 5", "/set top-k 3"):
        assert slash.interpret(context, line) is None
    in_force = session.resolve_sampling()[0]
    assert (in_force["temperature"], in_force["seed"], in_force["top_k"]) == (0, 5, 3)
    with pytest.raises(UsageError, match="start another with --kv-bits"):
        slash.interpret(context, "/set kv-bits 8")
    slash.interpret(context, "/set max-file-kib 9")
    assert context.attached.max_bytes == 9 * 1024
    text = slash.interpret(context, "hello")().result().text
    assert session.last_answer() == text
    slash.interpret(context, "/set max-tokens 1")
    assert slash.interpret(context, "/retry")().result().usage.completion_tokens <= 1
    slash.interpret(context, "/set temp default")
    assert session.resolve_sampling()[0]["temperature"] == before["temperature"]
    assert said[0] == "temp: 0."
    assert 0 < session.count_tokens("hello there") < 10
    assert by_model <= set(before)
