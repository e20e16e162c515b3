"""The person's defaults: `config.toml` read and checked, and which numbers an option may have."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from mlxchat import paths
from mlxchat.errors import SettingsError


# Named tuples here, not dataclasses: those take several times as long to define.
class Bounds(NamedTuple):
    """The numbers that a setting may have."""

    low: float
    high: float = math.inf
    is_integer: bool = False
    low_is_allowed: bool = True

    def allow(self, value: float) -> bool:
        """Returns whether `value` is finite and inside."""
        is_above = value >= self.low if self.low_is_allowed else value > self.low
        # Compared, not converted: a whole number may be too large for a float.
        return is_above and value <= min(self.high, sys.float_info.max)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_integer else "a number"
        if self.high == math.inf:
            return f"{kind} {'>=' if self.low_is_allowed else '>'} {self.low:g}"
        high = int(self.high) if self.is_integer else f"{self.high:g}"
        return f"{kind} in {'[' if self.low_is_allowed else '('}{self.low:g}, {high}]"


# Temperature 0 is greedy; top_k 0, min_p 0 and xtc_probability 0 switch the filter off. Above a
# threshold of 0.5 there is never more than one token.
SAMPLING_BOUNDS = {
    "temperature": Bounds(0),
    "top_p": Bounds(0, 1, low_is_allowed=False),
    "top_k": Bounds(0, is_integer=True),
    "min_p": Bounds(0, 1),
    "xtc_probability": Bounds(0, 1),
    "xtc_threshold": Bounds(0, 0.5),
    "repetition_penalty": Bounds(0, low_is_allowed=False),
    "seed": Bounds(0, 2**64 - 1, is_integer=True),
}
LENGTH_BOUNDS = {
    "max_tokens": Bounds(1, is_integer=True),
    "max_context": Bounds(1, is_integer=True),
    "think_budget": Bounds(0, is_integer=True),
}

# Several tokens a step: "auto" takes the draft model where one is named, else earlier text.
SPECULATE = ("off", "lookup", "auto")
KV_BITS = (8, 4)  # of quantised keys and values
# What a context that is full does.
OVERFLOW = ("error", "drop-oldest")

# The largest file that can be put into a message; more than the last would fill any context.
FILE_BOUNDS = {"max_kib": Bounds(1, 1024 * 1024, is_integer=True)}
# What stored prompt caches may take of the disk together; 0 stores none.
CACHE_BOUNDS = {"max_gib": Bounds(0)}


class Display(NamedTuple):
    """How answers look in a terminal: as Markdown or as written, and in which colours."""

    markdown: bool = True
    theme: str | None = None


_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Settings(NamedTuple):
    """What `config.toml` says; None and the empty mapping where it says nothing.

    Attributes:
        history: Whether conversations are kept on disk.
        engine: How models run: `kv_bits`, `speculate` and `draft_model`.
        overflow: One of `OVERFLOW`.
        systems: System prompts by name.
        memory_check: Whether a turn that would not fit into memory is refused.
        models: Sampling, `system` and `adapter` by the name of a model.
        typeahead: Whether a message is read while it is typed.
    """

    model: str | None = None
    system: str | None = None
    sampling: Mapping[str, float] = _EMPTY
    history: bool = True
    keys: Literal["emacs", "vi"] = "emacs"
    max_file_kib: int | None = None
    overflow: str | None = None
    display: Display = Display()
    engine: Mapping[str, Any] = _EMPTY
    cache_max_gib: float | None = None
    typeahead: bool = True
    systems: Mapping[str, str] = _EMPTY
    models: Mapping[str, Mapping[str, Any]] = _EMPTY
    memory_check: bool = True


def settings_path() -> Path:
    """Returns where `config.toml` is looked for."""
    return paths.config_dir() / "config.toml"


# All settings but those of names that people give, and what `mlxchat config set` makes of a word.
KINDS: dict[str, type] = {
    "model": str,
    "system": str,
    "history": bool,
    **{f"sampling.{name}": int if b.is_integer else float for name, b in SAMPLING_BOUNDS.items()},
    "keys.mode": str,
    "files.max_kib": int,
    "context.overflow": str,
    "context.memory_check": bool,
    "cache.max_gib": float,
    "display.markdown": bool,
    "display.theme": str,
    "engine.kv_bits": int,
    "engine.speculate": str,
    "engine.draft_model": str,
    "chat.typeahead": bool,
}


_MODEL_KINDS = {"system": str, "adapter": str} | {
    name.removeprefix("sampling."): kind
    for name, kind in KINDS.items()
    if name.startswith("sampling.")
}
_SYSTEM_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)


def split_name(name: str) -> tuple[str, ...]:
    """Returns the tables and the key of a setting; a model's name may have dots itself."""
    if name.startswith("models.") and name.count(".") > 1:
        _, _, rest = name.partition(".")
        model, _, key = rest.rpartition(".")
        return "models", model.strip("\"'"), key
    return tuple(name.split("."))


def kind_of(name: str) -> type | None:
    """Returns what `mlxchat config set` makes of a word for a setting; None is no setting."""
    parts = split_name(name)
    if len(parts) == 2 and parts[0] == "systems" and _SYSTEM_NAME.fullmatch(parts[1]):
        return str
    if len(parts) == 3 and parts[0] == "models" and parts[1]:
        return _MODEL_KINDS.get(parts[2])
    return KINDS.get(name)


def find_system(text: str, settings: Settings) -> str:
    """Returns a system prompt: the text, or the one that `@name` names in the settings.

    Raises:
        SettingsError: There is none of that name.
    """
    if not text.startswith("@") or not _SYSTEM_NAME.fullmatch(text[1:]):
        return text
    if text[1:] in settings.systems:
        return settings.systems[text[1:]]
    names = ", ".join(f"@{name}" for name in settings.systems)
    known = f"known are {names}" if names else "none has a name yet"
    raise SettingsError(
        f"there is no system prompt {text}; {known};"
        f" `mlxchat config set systems.{text[1:]} TEXT` makes it"
    )


def load_settings() -> Settings:
    """Reads `config.toml`; without one every setting has its default.

    Raises:
        SettingsError: The file cannot be read, is no TOML, or holds an unknown name or wrong value.
    """
    path = settings_path()
    text = read_settings(path)
    return check_settings(parse_toml(text, path), path) if text else Settings()


def read_settings(path: Path) -> str:
    """Returns the text of the settings file, nothing where there is none.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}; repair or remove it") from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Returns the tables of a settings file.

    Raises:
        SettingsError: It is no TOML.
    """
    import tomllib  # only here: most people have no settings file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}; repair or remove it") from None


def check_settings(table: dict[str, Any], path: Path) -> Settings:
    """Returns what the tables of a settings file say.

    Raises:
        SettingsError: A name is unknown or a value not allowed.
    """
    tables = ("sampling", "keys", "files", "context", "display", "engine", "cache", "chat")
    named = ("systems", "models")
    _refuse_unknown(table, ("model", "system", "history", *tables, *named), path, "")
    for name in ("model", "system"):
        if name in table and not isinstance(table[name], str):
            raise SettingsError(f"{path}: {name} = {table[name]!r} is not allowed; give a string")
    history = table.get("history", True)
    if not isinstance(history, bool):
        raise SettingsError(f"{path}: history = {history!r} is not allowed; give true or false")
    sampling = _read_numbers(table, "sampling", SAMPLING_BOUNDS, path)
    files = _read_numbers(table, "files", FILE_BOUNDS, path)
    cache = _read_numbers(table, "cache", CACHE_BOUNDS, path)
    keys = _read_table(table, "keys", ("mode",), path).get("mode", "emacs")
    if keys not in ("emacs", "vi"):
        raise SettingsError(f"{path}: keys.mode = {keys!r} is not allowed; give 'emacs' or 'vi'")
    context = _read_table(table, "context", ("overflow", "memory_check"), path)
    overflow, memory_check = context.get("overflow"), context.get("memory_check", True)
    if not isinstance(memory_check, bool):
        raise SettingsError(
            f"{path}: context.memory_check = {memory_check!r} is not allowed; give true or false"
        )
    if overflow not in (None, *OVERFLOW):
        raise SettingsError(
            f"{path}: context.overflow = {overflow!r} is not allowed; give"
            f" {' or '.join(map(repr, OVERFLOW))}"
        )
    display = _read_table(table, "display", ("markdown", "theme"), path)
    for name, kind, wanted in (("markdown", bool, "true or false"), ("theme", str, "a string")):
        if name in display and not isinstance(display[name], kind):
            value = display[name]
            raise SettingsError(f"{path}: display.{name} = {value!r} is not allowed; give {wanted}")
    typeahead = _read_table(table, "chat", ("typeahead",), path).get("typeahead", True)
    if not isinstance(typeahead, bool):
        raise SettingsError(
            f"{path}: chat.typeahead = {typeahead!r} is not allowed; give true or false"
        )
    return Settings(
        table.get("model"),
        table.get("system"),
        sampling,
        history,
        keys,
        files.get("max_kib"),
        overflow,
        Display(**display),
        _read_engine(table, path),
        cache.get("max_gib"),
        typeahead,
        _read_systems(table, path),
        _read_models(table, path),
        memory_check,
    )


def _read_systems(table: dict[str, Any], path: Path) -> dict[str, str]:
    systems = _read_table(table, "systems", None, path)
    for name, text in systems.items():
        if not _SYSTEM_NAME.fullmatch(name):
            raise SettingsError(
                f"{path}: systems.{name} is not allowed; names have letters, digits and hyphens"
            )
        if not isinstance(text, str) or not text:
            raise SettingsError(f"{path}: systems.{name} = {text!r} is not allowed; give a string")
    return systems


def _read_models(table: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    models = _read_table(table, "models", None, path)
    for name, own in models.items():
        place = f'models."{name}"'
        if not isinstance(own, dict):
            raise SettingsError(f"{path}: {place} = {own!r} is not allowed; give a [{place}] table")
        _refuse_unknown(own, tuple(_MODEL_KINDS), path, f"{place}.")
        for key in ("system", "adapter"):
            if not isinstance(value := own.get(key, ""), str):
                what = f"{place}.{key} = {value!r}"
                raise SettingsError(f"{path}: {what} is not allowed; give a string")
        numbers = {k: value for k, value in own.items() if k not in ("system", "adapter")}
        _check_numbers(numbers, place, SAMPLING_BOUNDS, path)
    return models


def _read_engine(table: dict[str, Any], path: Path) -> dict[str, Any]:
    engine = _read_table(table, "engine", ("kv_bits", "speculate", "draft_model"), path)
    bits = engine.get("kv_bits", KV_BITS[0])
    if isinstance(bits, bool) or bits not in KV_BITS:
        raise SettingsError(f"{path}: engine.kv_bits = {bits!r} is not allowed; give 8 or 4")
    speculate = engine.get("speculate", SPECULATE[0])
    if not isinstance(draft := engine.get("draft_model", ""), str):
        raise SettingsError(f"{path}: engine.draft_model = {draft!r} is not allowed; give a string")
    if speculate not in SPECULATE:
        raise SettingsError(
            f"{path}: engine.speculate = {speculate!r} is not allowed; give"
            f" {' or '.join(map(repr, SPECULATE))}"
        )
    return engine


def _read_table(
    table: dict[str, Any], name: str, known: tuple[str, ...] | None, path: Path
) -> dict[str, Any]:
    inner = table.get(name, {})
    if not isinstance(inner, dict):
        raise SettingsError(f"{path}: {name} = {inner!r} is not allowed; give a [{name}] table")
    if known is not None:
        _refuse_unknown(inner, known, path, f"{name}.")
    return inner


def _read_numbers(
    table: dict[str, Any], name: str, bounds_of: dict[str, Bounds], path: Path
) -> dict[str, Any]:
    numbers = _read_table(table, name, tuple(bounds_of), path)
    _check_numbers(numbers, name, bounds_of, path)
    return numbers


def _check_numbers(
    numbers: dict[str, Any], name: str, bounds_of: dict[str, Bounds], path: Path
) -> None:
    for key, value in numbers.items():
        bounds = bounds_of[key]
        types = int if bounds.is_integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or not bounds.allow(value):
            raise SettingsError(f"{path}: {name}.{key} = {value} is not allowed; give {bounds}")


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], path: Path, prefix: str) -> None:
    for name in table:
        if name not in known:
            names = ", ".join(known)
            raise SettingsError(f"{path}: {prefix}{name} is not a setting; known are {names}")
