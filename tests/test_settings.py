"""`config.toml` and the bounds of numbers."""

import math

import pytest

from mlxchat.errors import SettingsError
from mlxchat.settings import SAMPLING_BOUNDS, Bounds, Settings, load_settings, settings_path


def write(text: str | bytes) -> None:
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_without_file():
    """Without config.toml every setting has its default and nothing is created."""
    assert load_settings() == Settings(None, None, {})
    assert not settings_path().parent.exists()


def test_full_file():
    """Model, system prompt and sampling are read as written."""
    write('model = "a/b"\nsystem = "Be kind."\n[sampling]\ntemperature = 0\ntop_p = 0.9\n')
    assert load_settings() == Settings("a/b", "Be kind.", {"temperature": 0, "top_p": 0.9})


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("0.5", 0.5), ("200", 200)])
def test_cache_budget(text, value):
    """What stored prompts may take is a number of GiB; 0 is none at all."""
    write(f"[cache]\nmax_gib = {text}\n")
    assert load_settings().cache_max_gib == value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model = ", "not valid TOML"),
        (b"model = '\xff'", "cannot read"),
        ("modle = 'x'", "modle is not a setting; known are model, system, history, sampling"),
        ("model = 3", "model = 3 is not allowed; give a string"),
        ("sampling = 3", "sampling = 3 is not allowed; give a [sampling] table"),
        ("[sampling]\ntemp = 1", "sampling.temp is not a setting; known are temperature"),
        ("[sampling]\ntop_p = 0", "sampling.top_p = 0 is not allowed; give a number in (0, 1]"),
        ("[engine]\nkv_bits = 5", "engine.kv_bits = 5 is not allowed; give 8 or 4"),
        ("[engine]\nkv_bits = true", "give 8 or 4"),
        ("[sampling]\ntop_p = '1'", "sampling.top_p = 1 is not allowed"),
        ("[sampling]\ntop_k = 1.5", "give a whole number >= 0"),
        ("[sampling]\ntop_k = true", "sampling.top_k = True is not allowed"),
        ("[chat]\ntypeahead = 1", "chat.typeahead = 1 is not allowed; give true or false"),
        ("[chat]\ntype = 1", "chat.type is not a setting; known are typeahead"),
        ("[cache]\nmax_gib = -1", "cache.max_gib = -1 is not allowed; give a number >= 0"),
        ("[cache]\nmax_gib = '10'", "cache.max_gib = 10 is not allowed; give a number >= 0"),
        ("[cache]\nmax_gb = 10", "cache.max_gb is not a setting; known are max_gib"),
        ("[sampling]\ntemperature = nan", "sampling.temperature = nan is not allowed"),
    ],
)
def test_broken_file(text, part):
    """A broken file is one line that names the file and what is allowed."""
    write(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert part in message
    assert str(settings_path()) in message
    assert "\n" not in message


def test_settings_that_are_a_folder():
    """A config.toml that cannot be read is an error, not a default."""
    settings_path().mkdir(parents=True)
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings()


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Bounds(0), [0, 5.5], [-0.1, math.nan, math.inf], "a number >= 0"),
        (Bounds(0, low_is_allowed=False), [0.1], [0, -1], "a number > 0"),
        (Bounds(0, 1), [0, 1], [1.01], "a number in [0, 1]"),
        (Bounds(0, 1, low_is_allowed=False), [0.5, 1], [0], "a number in (0, 1]"),
        (Bounds(1, is_integer=True), [1, 10**6], [0], "a whole number >= 1"),
        (SAMPLING_BOUNDS["seed"], [0, 2**64 - 1], [-1, 2**64], f"in [0, {2**64 - 1}]"),
    ],
)
def test_bounds(bounds, inside, outside, text):
    """Bounds take what they describe and refuse the rest."""
    assert all(bounds.allow(value) for value in inside)
    assert not any(bounds.allow(value) for value in outside)
    assert text in str(bounds)
