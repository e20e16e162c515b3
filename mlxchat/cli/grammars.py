"""What answers must match, as a person writes it: `--json-schema`, `--regex`, `--grammar`."""

from pathlib import Path
from typing import Any

from mlxchat.engine.grammar import ANY_OBJECT, Grammar, Kind, check_grammar
from mlxchat.errors import UsageError

ANY = "any"
OPTIONS: dict[str, Kind] = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}


def take_grammar(given: dict[str, Any]) -> Grammar | None:
    """Takes the options that name a grammar out of those that were given, and returns it.

    Raises:
        UsageError: There are several, a file is missing, or it cannot be used.
    """
    found = {name: given.pop(name) for name in OPTIONS if name in given}
    if len(found) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in list(found)[:2])
        raise UsageError(f"{first} and {second} cannot hold one answer together; give one of them")
    for name, text in found.items():
        return read_grammar(OPTIONS[name], text)
    return None


def read_grammar(kind: Kind, text: str) -> Grammar:
    """Returns the grammar that a person names.

    Args:
        kind: Of the grammar.
        text: A pattern; the file of a Lark grammar; JSON, the file that holds it, or `any`.

    Raises:
        UsageError: A file is missing, or it cannot be used.
    """
    text = text if kind == "regex" else text.strip()
    if kind == "json_schema" and text == ANY:
        return Grammar(kind, ANY_OBJECT, "any object")
    if kind == "regex" or (kind == "json_schema" and text[:1] in ("{", "[")):
        grammar = Grammar(kind, text, text)
    else:
        grammar = Grammar(kind, _read(kind, text), text)
    check_grammar(grammar)
    return grammar


def _read(kind: Kind, file: str) -> str:
    allowed = "a file, JSON, or any" if kind == "json_schema" else "a file with a Lark grammar"
    try:
        return Path(file).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file!r} cannot be read ({error.strerror}); give {allowed}") from None
    except ValueError:  # no UTF-8, or no name of a file at all
        raise UsageError(f"{file!r} is no text in UTF-8; give {allowed}") from None


def format_grammar(grammar: Grammar | None) -> str:
    """Returns what answers must match, in a few words."""
    if grammar is None:
        return "off"
    label = " ".join(grammar.label.split())
    return f"{grammar.name} {label if len(label) <= 48 else label[:47] + '…'}"
