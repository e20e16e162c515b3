"""The Jinja environment in which chat templates run.

Renders what transformers' `apply_chat_template` renders, byte for byte: the same sandbox, trimming,
tags, filters and globals. Knows nothing of conversations. Imported on first use, since it imports
jinja2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# A template that writes more than this, or computes for longer than this, is taken for one that
# never ends: a million tokens in short messages take 0.2 s. Loops that write nothing cannot be
# stopped from outside; the sandbox bounds each `range`.
MAX_OUTPUT_CHARS = 64_000_000
MAX_RENDER_S = 3.0


class RunawayTemplateError(Exception):
    """The template wrote without end."""


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks answers for training; here it is plain."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block and keep its body as it is, with its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _PublicNamespace(Namespace):
    """Jinja's `namespace` without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` is a legal key of a namespace, so it must not be a parameter's name.
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the private name {name!r}")


class _DictMaker:
    """The global `dict`: makes dicts and shows nothing of the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _DictMaker()
    environment.globals["namespace"] = _PublicNamespace
    return environment


@lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """Compile a template text; the same text is compiled once.

    Raises:
        jinja2.TemplateSyntaxError: The text is no template.
    """
    try:
        return _environment().from_string(source)
    except (RecursionError, MemoryError) as error:
        raise TemplateSyntaxError("nested too deeply", 1) from error


@lru_cache(maxsize=16)
def read_variables(source: str) -> frozenset[str]:
    """The names that a template reads and does not set itself."""
    return frozenset(find_undeclared_variables(_environment().parse(source)))


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Render a template text.

    Raises:
        Exception: Whatever the template raises.
        RunawayTemplateError: It wrote too much or for too long.
    """
    start, deadline = time.thread_time(), time.monotonic() + MAX_RENDER_S
    parts: list[str] = []
    num_chars = 0
    for part in compile_template(source).generate(variables):
        parts.append(part)
        num_chars += len(part)
        # A busy machine is no fault of the template; the wall clock is only the cheaper question.
        is_late = time.monotonic() > deadline and time.thread_time() - start > MAX_RENDER_S
        if num_chars > MAX_OUTPUT_CHARS or is_late:
            raise RunawayTemplateError("it writes without end")
    return "".join(parts)
