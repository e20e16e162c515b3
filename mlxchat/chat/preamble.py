"""What may stand before an answer that is held to a grammar: thinking, and the markers around it.

The grammar describes the answer alone. Thinking is free but for its end: it must end before the
answer does. Behind it the model may write the white space and the opener of the answer as its
template has them. Where the model does not think the answer begins at once.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlxchat.chat.prompt import RenderedPrompt
from mlxchat.chat.reasoning import ReasoningSplitter
from mlxchat.chat.reasoning_markers import is_closed_by
from mlxchat.engine.constraint import Constraint
from mlxchat.engine.grammar import Grammar, TokenTable
from mlxchat.errors import MlxchatError
from mlxchat.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mlxchat.chat.prompt import PromptRenderer

_TAIL_CHARS = 64  # of a prompt: more than any token has
_SAMPLE = "{"
_NONE: frozenset[int] = frozenset()


class ThinkingPreamble:
    """Follows an answer up to where its text begins; a `Preamble` of `engine/constraint.py`.

    Args:
        renderer: Knows the markers of the model.
        prompt: Thinking may be open at its end, or closed.
    """

    def __init__(self, renderer: "PromptRenderer", prompt: RenderedPrompt) -> None:
        self._renderer, self._prompt = renderer, prompt
        self._tokenizer, self._markers = renderer.tokenizer, renderer.markers
        self.restart()

    def restart(self) -> None:
        """Begins again."""
        self._splitter: ReasoningSplitter = self._renderer.splitter(self._prompt)
        self._is_over = False
        self._walked = 0  # ids of the marker that is being written
        self._paths: list[tuple[int, ...]] = []
        self._spaces: list[tuple[int, ...]] = []  # those that need not be finished
        if not self._splitter.is_thinking:
            self._begin([] if self._is_closed() else self._openers())

    @property
    def is_over(self) -> bool:
        """The text has begun, or begins with the next token."""
        return self._is_over

    @property
    def may_end(self) -> bool:
        """The text may begin with the next token."""
        return self.next_ids is not None and (not self._walked or bool(self._spaces))

    @property
    def next_ids(self) -> frozenset[int] | None:
        """Ids that go on with what stands before the text; None where anything goes."""
        if self._splitter.is_thinking:
            return None
        paths = (*self._paths, *self._spaces)
        return frozenset(path[self._walked] for path in paths)

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that would end the thinking and begin the text with something unchecked."""
        rests = self._splitter.open_closers() if self._splitter.is_thinking else ()
        if not rests:
            return _NONE
        space = self._markers.after_closer
        return frozenset(
            token_id
            for text, token_id in self._texts()
            for rest in rests
            if text.startswith(rest) and not space.startswith(text[len(rest) :])
        )

    def push(self, token_id: int) -> bool:
        """Takes the next id; returns whether it stands before the text."""
        if self._splitter.is_thinking:
            self._splitter.push(token_id)
            if not self._splitter.is_thinking:
                self._begin(self._markers.answer_openers, self._space_left())
            return True
        at = self._walked
        self._paths = [path for path in self._paths if path[at] == token_id]
        self._spaces = [path for path in self._spaces if path[at] == token_id]
        if not self._paths and not self._spaces:
            self._is_over = True
            return False
        self._splitter.push(token_id)
        self._walked += 1
        if any(len(path) == self._walked for path in (*self._paths, *self._spaces)):
            is_space = bool(self._spaces)
            self._begin(self._markers.answer_openers if is_space else ())
        return True

    def _begin(self, markers: Iterable[str], space: str = "") -> None:
        """Begins the place behind a marker, or that at the start of the answer."""
        if self._splitter.is_thinking:
            return
        self._walked = 0
        encode = self._tokenizer.encode
        self._paths = [tuple(encode(text, is_continuation=True)) for text in markers]
        self._paths = [path for path in self._paths if path]
        self._spaces = [tuple(encode(space, is_continuation=True))] if space else []
        self._is_over = not self._paths and not self._spaces

    def _openers(self) -> list[str]:
        """Returns the markers with which this model may begin: those that it knows."""
        source, markers = self._renderer.template.source, self._markers
        return [
            opener
            for opener in (markers.opener, *markers.answer_openers)
            if opener in source
            or self._tokenizer.token_id(opener) is not None
            or (opener == markers.opener and markers.closers[0] in source)
        ]

    def _is_closed(self) -> bool:
        return is_closed_by(self._markers, self._prompt.text)

    def _space_left(self) -> str:
        """Returns the white space behind the closer that has not come yet."""
        if self._splitter.has_begun_answer:
            return ""
        return self._markers.after_closer.removeprefix(self._splitter.held_text)

    def _texts(self) -> Iterable[tuple[str, int]]:
        tokenizer = self._tokenizer
        return ((tokenizer.token_text(i), i) for i in tokenizer.vocabulary().values())


class AnswerGrammars:
    """Makes what holds the answers of one model to grammars.

    Args:
        tokenizer: The model's.
        vocab_size: V.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._table: TokenTable | None = None

    def prepare(self) -> TokenTable:
        """Makes the table of the tokens; takes most of a second where there are 150,000 of them.

        Raises:
            MlxchatError: The tokenizer has no bytes for each token.
        """
        if self._table is None:
            tokenizer = self._tokenizer
            if not tokenizer.has_token_bytes:
                raise MlxchatError(
                    "this model's tokenizer has no bytes for each token, which a grammar needs;"
                    " leave the grammar out, or take another model"
                )
            self._table = TokenTable(
                [tokenizer.token_bytes(i) for i in range(self._vocab_size)],
                tokenizer.eos_ids,
                tokenizer.special_ids,
                lambda text: tokenizer.encode(text, is_continuation=True),
            )
        return self._table

    def constrain(
        self, grammar: Grammar, renderer: "PromptRenderer", prompt: RenderedPrompt
    ) -> Constraint:
        """Makes what holds the answer to a prompt to a grammar.

        Raises:
            MlxchatError: The grammar cannot be used with this model.
        """
        preamble = ThinkingPreamble(renderer, prompt)
        after_blank = preamble.is_over and _puts_blank(renderer, prompt)
        made = Constraint(self.prepare(), grammar, preamble, after_blank=after_blank)
        made.mask()  # a text that cannot even begin ends this line of a batch and no other
        return made


def _puts_blank(renderer: "PromptRenderer", prompt: RenderedPrompt) -> bool:
    """Whether the tokenizer puts a blank before a text at the end of a prompt, and hides it."""
    tokenizer, before = renderer.tokenizer, prompt.text[-_TAIL_CHARS:]
    head, whole = tokenizer.encode(before), tokenizer.encode(before + _SAMPLE)
    added = whole[len(head) :]
    if whole[: len(head)] != head or not added:
        return False
    splitter = renderer.splitter(prompt)
    for token_id in added:
        splitter.push(token_id)
    spelled = b"".join(tokenizer.token_bytes(i) for i in added)
    return spelled == f" {_SAMPLE}".encode() and splitter.finish()[1].text == _SAMPLE
