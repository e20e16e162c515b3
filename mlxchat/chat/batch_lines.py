"""The lines of a batch file: in each a question as JSON, perhaps with settings of its own.

Free of MLX. A line that is broken is known by its error and answered with it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxchat.chat.conversation import Conversation
from mlxchat.chat.options import ChatOptions, pick_seed
from mlxchat.chat.results import TurnResult
from mlxchat.chat.template import Message
from mlxchat.engine.grammar import ANY_OBJECT, Grammar, Kind, check_grammar
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.settings import LENGTH_BOUNDS, SAMPLING_BOUNDS

EXAMPLE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
_NUMBERS = {"max_tokens": LENGTH_BOUNDS["max_tokens"], **SAMPLING_BOUNDS}
_GRAMMARS: tuple[Kind, ...] = ("json_schema", "regex", "grammar")
_FIELDS = ("id", "prompt", "messages", "system", "stop", *_NUMBERS, *_GRAMMARS)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line.

    Attributes:
        index: Counted from 0, blank lines left out: the place of its answer.
        number: Of the line in the file, counted from 1.
        id: What the person calls it, if anything.
        messages: The last is the question.
        system: The system prompt; None is that of the options, an empty one is none.
        max_tokens: Longest answer; None as the options say.
        stop: What ends the answer; None as the options say.
        sampling: Settings that the line itself makes.
        grammar: What the answer must match; None as the options say.
        error: What is wrong with it.
    """

    index: int
    number: int
    id: str | int | float | None = None
    messages: tuple[Message, ...] = ()
    system: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    grammar: Grammar | None = None
    error: MlxchatError | None = None

    @property
    def question(self) -> str:
        """The message to answer."""
        return self.messages[-1].content

    def make_conversation(self, system: str | None) -> Conversation:
        """Makes the conversation before the question.

        Args:
            system: The system prompt of lines that name none.
        """
        conversation = Conversation((system if self.system is None else self.system) or None)
        for message in self.messages[:-1]:
            conversation.append(message)
        return conversation

    def choose_options(self, options: ChatOptions) -> ChatOptions:
        """Returns the options with what the line says; where nobody chose a seed, one of its own.

        Alone each line would have had another seed too.
        """
        sampling = replace(options.sampling, **self.sampling)
        if sampling.seed is None:
            sampling = replace(sampling, seed=pick_seed())
        return replace(
            options,
            sampling=sampling,
            max_tokens=self.max_tokens or options.max_tokens,
            stop=options.stop if self.stop is None else self.stop,
            grammar=self.grammar or options.grammar,
        )


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What came of a line: its answer, or the error."""

    line: BatchLine
    result: TurnResult | None = None
    error: Exception | None = None


def read_lines(data: bytes) -> list[BatchLine]:
    """Reads a batch file; what is wrong with a line stands in its `error`."""
    lines: list[BatchLine] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        found: dict[str, Any] = {}
        try:
            found = _parse(raw)
            line = _make_line(found, len(lines), number)
        except UsageError as error:
            name = found.get("id")
            named = name if _is_name(name) else None
            line = BatchLine(len(lines), number, named, error=UsageError(f"line {number}: {error}"))
        lines.append(line)
    return lines


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 (byte {error.start}); convert it with iconv") from None
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"not JSON ({what}{where}); give {EXAMPLE}") from None
    if not isinstance(found, dict):
        raise UsageError(f"not an object; give {EXAMPLE}")
    return found


def _make_line(found: dict[str, Any], index: int, number: int) -> BatchLine:
    unknown = [name for name in found if name not in _FIELDS]
    if unknown:
        raise UsageError(f"there is no field {unknown[0]!r}; fields are {', '.join(_FIELDS)}")
    given = {name: value for name, value in found.items() if value is not None}
    if not _is_name(given.get("id")):
        raise UsageError("'id' is neither text nor a number; give one of them")
    system, messages = _read_messages(given)
    numbers = {name: _read_number(given, name) for name in _NUMBERS if name in given}
    max_tokens = numbers.pop("max_tokens", None)
    return BatchLine(
        index,
        number,
        given.get("id"),
        messages,
        system,
        None if max_tokens is None else int(max_tokens),
        _read_stop(given),
        numbers,
        _read_grammar(given),
    )


def _is_name(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # what Python reads for NaN and 1e999 is no JSON again
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _read_messages(given: dict[str, Any]) -> tuple[str | None, tuple[Message, ...]]:
    """Returns the system prompt, if the line has one, and the other messages."""
    if ("prompt" in given) == ("messages" in given):
        which = "both 'prompt' and 'messages'" if "prompt" in given else "no 'prompt'"
        raise UsageError(f"it has {which}; give {EXAMPLE}")
    system = _read_text(given, "system", may_be_empty=True) if "system" in given else None
    if "prompt" in given:
        return system, (Message("user", _read_text(given, "prompt")),)
    if not isinstance(given["messages"], list):
        raise UsageError('\'messages\' is no list; give [{"role": ..., "content": ...}, ...]')
    messages = [_read_message(message) for message in given["messages"]]
    if messages and messages[0].role == "system":
        if system is not None:
            raise UsageError("it has two system prompts; leave out 'system' or the first message")
        system = messages.pop(0).content
    if any(message.role == "system" for message in messages):
        raise UsageError("a system message stands behind others; only the first may be one")
    if not messages or messages[-1].role != "user":
        raise UsageError("the last message is not the user's; end with the one to be answered")
    return system, tuple(messages)


def _read_message(message: object) -> Message:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        raise UsageError('a message is no object of two fields; give {"role": ..., "content": ...}')
    role = message["role"]
    if role not in ("system", "user", "assistant"):
        raise UsageError(f"there is no role {role!r}; roles are system, user and assistant")
    return Message(role, _read_text(message, "content", may_be_empty=role != "user"))


def _read_text(given: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise UsageError(f"{name!r} is no text; give a string")
    if not (value.strip() or may_be_empty):
        raise UsageError(f"{name!r} is empty; give some text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name!r} holds half of a surrogate pair; give whole ones") from None
    return value


def _read_number(given: Mapping[str, Any], name: str) -> float:
    bounds, value = _NUMBERS[name], given[name]
    is_number = isinstance(value, int if bounds.is_integer else int | float)
    if not is_number or isinstance(value, bool) or not bounds.allow(value):
        raise UsageError(f"{name!r} is {json.dumps(value)[:40]}; give {bounds}")
    return value if bounds.is_integer else float(value)


def _read_grammar(given: Mapping[str, Any]) -> Grammar | None:
    names = [name for name in _GRAMMARS if name in given]
    if not names:
        return None
    if len(names) > 1:
        raise UsageError(f"{names[0]!r} and {names[1]!r} do not go together; give one of them")
    kind, value = names[0], given[names[0]]
    if kind == "json_schema":
        if value != "any" and not isinstance(value, dict):
            raise UsageError("'json_schema' is no JSON schema; give an object, or \"any\"")
        grammar = Grammar(kind, ANY_OBJECT if value == "any" else json.dumps(value))
    else:
        grammar = Grammar(kind, _read_text(given, kind))
    check_grammar(grammar)
    return grammar


def _read_stop(given: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "stop" not in given:
        return None
    texts = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
        raise UsageError("'stop' is neither a text nor a list of texts; give one of them")
    return tuple(texts)
