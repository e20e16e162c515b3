"""What an answer must look like: a JSON schema, a regular expression or a Lark grammar.

Knows which grammars llguidance can hold a text to, and makes matchers, which say token by token
what may come next. Free of MLX; llguidance is imported when there is a grammar, and only then.

A matcher allows every token that keeps the text a beginning of what the grammar describes, also
where only one text can follow: llguidance would then allow one way to cut that text into tokens
only (`no_forcing` is the switch), and the model's own choice among the others would be lost. In
some tokenizers it then also allows what it refuses afterwards (guidance-ai/llguidance#366).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlxchat.errors import MlxchatError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher

Kind = Literal["json_schema", "regex", "grammar"]
ANY_OBJECT = '{"type": "object"}'

_OPTIONS = '\n%llguidance {"no_forcing": true, "skip_repetition": "once"}\n'
# Between two marks of JSON: nothing, blanks, or a line break and an indent. A small model would
# else go on with white space for ever, which every schema allows it by itself.
_WHITESPACE = r"( {0,2}|\n {0,20}|\n\t{0,6})"
_SHOWN_LINE = re.compile(r"\s*\d+ \|")
_NAMES: dict[Kind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
}
_HINTS: dict[Kind, str] = {
    "json_schema": "see json-schema.org for the keywords; leave out what is not supported",
    "regex": "write it as Rust's regex crate takes it, without look-around and back references",
    "grammar": "write it in Lark, with a rule named start",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match.

    Attributes:
        kind: How the text is written.
        text: A schema as JSON, a regular expression, or a grammar in Lark.
        label: What the person wrote to name it.
    """

    kind: Kind
    text: str
    label: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What it is called."""
        return _NAMES[self.kind]


def check_grammar(grammar: Grammar) -> None:
    """Finds out whether a grammar can be used; needs no model.

    Raises:
        UsageError: It cannot; says why.
    """
    from llguidance import LLMatcher

    try:
        if grammar.kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(grammar.text)
        elif grammar.kind == "regex":
            source = LLMatcher.grammar_from_regex(grammar.text)
        else:
            source = LLMatcher.grammar_from_lark(grammar.text)
        is_broken, messages = LLMatcher.validate_grammar_with_warnings(source)
    except ValueError as error:
        is_broken, messages = True, [str(error)]
    if is_broken:
        raise _refuse(grammar, messages[0])
    if grammar.kind == "regex" and not grammar.text:
        raise _refuse(grammar, "it is empty")


def _refuse(grammar: Grammar, why: str) -> UsageError:
    return UsageError(
        f"the {grammar.name} cannot be used: {_shorten(why)[:200]}; {_HINTS[grammar.kind]}"
    )


def _shorten(why: str) -> str:
    """Returns what is wrong without the lines that show the place."""
    lines = why.splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:  # of the library for regular expressions
        return f"regex parse error: {said[-1]}"
    kept = itertools.takewhile(lambda line: not _SHOWN_LINE.match(line), lines)
    return " ".join(" ".join(kept).split()).removesuffix(":")


def _compile(grammar: Grammar, *, after_blank: bool) -> str:
    """Returns the grammar in the language of llguidance, with our options.

    Args:
        grammar: What the text must match.
        after_blank: A blank stands before the text.
    """
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        schema = json.loads(grammar.text)
        if isinstance(schema, dict) and "x-guidance" not in schema:  # there it may choose its own
            schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}
        lark = f"start: %json {json.dumps(schema)}"
    elif grammar.kind == "regex":
        made = LLMatcher.grammar_from_regex(grammar.text)
        lark = json.loads(made)["grammars"][0]["lark_grammar"]
    else:
        lark = grammar.text
    if not after_blank:
        return LLMatcher.grammar_from_lark(lark + _OPTIONS)
    whole = {"lark_grammar": f'start: " " @text{_OPTIONS}'}
    return json.dumps({"grammars": [whole, {"name": "text", "lark_grammar": lark + _OPTIONS}]})


class TokenTable:
    """The tokens of a model as bytes, ordered as llguidance wants them: made once for a model.

    Args:
        tokens: The bytes of each id; empty where an id stands for none.
        end_ids: Ids that end an answer.
        special_ids: Ids that are no text, those that end an answer among them.
        encode: Cuts a text into ids.

    Raises:
        MlxchatError: No id ends an answer.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        end_ids: Collection[int],
        special_ids: Collection[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = sorted(i for i in end_ids if i < len(tokens))
        if not ends:
            raise MlxchatError(
                "this model has no token that ends an answer, which a grammar needs; leave the"
                " grammar out, or take another model"
            )
        special = sorted(i for i in {*special_ids, *ends} if i < len(tokens))
        wrapper = TokenizerWrapper(_Wrapped(tokens, ends[0], special, encode))
        try:
            self._tokens = LLTokenizer(wrapper, n_vocab=len(tokens), eos_token=ends)
        except (ValueError, TypeError) as error:
            raise MlxchatError(
                f"llguidance does not take this model's tokenizer ({error}); leave the grammar"
                " out, or take another model"
            ) from None
        self.end_ids = frozenset(ends)
        self._begin_blank = bytes(token.startswith(b" ") for token in tokens)
        self.vocab_size = len(tokens)

    def begins_with_blank(self, token_id: int) -> bool:
        """Whether a token's bytes begin with a blank."""
        return bool(self._begin_blank[token_id])

    def make_matcher(self, grammar: Grammar, *, after_blank: bool = False) -> LLMatcher:
        """Makes what holds one answer to a grammar.

        Args:
            grammar: What the text must match.
            after_blank: A blank stands before the text.

        Raises:
            UsageError: The grammar cannot be used with these tokens.
        """
        from llguidance import LLMatcher

        source = _compile(grammar, after_blank=after_blank)
        matcher = LLMatcher(self._tokens, source, log_level=0)
        if matcher.is_error():
            raise _refuse(grammar, matcher.get_error())
        return matcher


class _Wrapped:
    """A tokenizer as `TokenizerWrapper` wants it."""

    bos_token_id = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        end_id: int,
        special_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self.eos_token_id, self.special_token_ids, self.tokens = end_id, special_ids, tokens
        self._encode = encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))
