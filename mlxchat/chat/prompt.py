"""A conversation to token ids, exactly.

The ids are those of the rendered text, with the ids a model generated standing where the template
shows its answer: encoding the text of an answer again often gives other ids, and every other id
is read again. Decoding the ids always equals decoding the tokenizer's encoding of the text. Knows
nothing of caches; pure functions of the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxchat.chat.layout import Field, FieldFinder
from mlxchat.chat.reasoning import ReasoningSplitter, Split
from mlxchat.chat.reasoning_markers import Markers, find_markers, is_closed_by, opened_by
from mlxchat.chat.splice import SegmentEncoder, Span, count_common_ids
from mlxchat.chat.template import ChatTemplate, Message
from mlxchat.engine.token_ids import count_common
from mlxchat.errors import TemplateError
from mlxchat.model.tokenizer import Tokenizer

# Beginnings of the next question that merge differently with what stands before it: a word, a
# digit, a line break, a space. What is common to all four prompts is there whatever is asked.
NEXT_QUESTIONS = ("Zebra", "7 quick", "\nZ", " Z")


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered conversation.

    Attributes:
        token_ids: What the model reads.
        message_ends: For each message, how many ids at the start do not depend on later
            messages; the last one is the length. Where it is not known exactly, less.
        text: The rendered text.
        is_respelled: The last answer, which came without thinking, is shown as it was generated,
            but the tokenizer would not have written it in those ids (held text that begins where
            it wants a space, for instance).
    """

    token_ids: tuple[int, ...]
    message_ends: tuple[int, ...]
    text: str
    is_respelled: bool = False


class PromptRenderer:
    """Renders one conversation's prompts; keeps what it has encoded.

    Args:
        template: The model's template with the conversation's switches and date.
        tokenizer: The model's tokenizer.
        keep_thinking: Keep earlier thinking in the prompt where the template allows it.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, *, keep_thinking: bool = False
    ) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.markers: Markers = find_markers(template, tokenizer)
        self.notices: list[str] = []
        self._encoder = SegmentEncoder(tokenizer)
        self._finder = FieldFinder(template)
        self._system_ids: dict[str, tuple[int, ...]] = {}
        self._last: tuple[tuple[Message, ...], bool, RenderedPrompt] | None = None
        self._is_inline = keep_thinking and self._find_inline()

    def _find_inline(self) -> bool:
        """Whether thinking is kept by leaving it inside the content."""
        if self.template.shows_reasoning():
            return False
        marks = (self.markers.opener, self.markers.closers[0])
        if self.template.shows_reasoning(inline=marks):
            return True
        self.notices.append(
            "this model's template drops earlier thinking and has no switch to keep it"
        )
        return False

    def render_text(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation.

        Raises:
            TemplateError: The template refuses it.
        """
        return self.template.render_messages(messages, add_generation_prompt=add_generation_prompt)

    def render_ids(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """The ids of a conversation, generated ids in their places.

        No BOS is added to what the template renders, as transformers adds none.

        Raises:
            TemplateError: The template refuses the conversation.
        """
        asked = tuple(messages)
        if self._last is not None and self._last[:2] == (asked, add_generation_prompt):
            return self._last[2]  # a draft that was read whole, and is sent
        text = self.render_text(messages, add_generation_prompt=add_generation_prompt)
        fields = self._finder.fields(messages)
        spans = self._finder.find(messages, fields, text, add_generation_prompt)
        prompt = self._assemble(messages, text, fields, spans)
        self._last = asked, add_generation_prompt, prompt
        return prompt

    def _assemble(
        self, messages: Sequence[Message], text: str, fields: list[Field], spans: Sequence[Span]
    ) -> RenderedPrompt:
        """Encode a text with the ids of its fields in their places."""
        token_ids: list[int] = []
        ends = [0] * len(messages)
        segments = self._encoder.encode(text, spans)
        unfit = {span.owner for span in spans} - {segment.owner for segment in segments}
        last = max((fields[span.owner].message for span in spans), default=0)
        for segment in segments:
            if segment.owner >= 0:
                message = fields[segment.owner].message
                if message and not ends[message - 1]:
                    ends[message - 1] = len(token_ids)
                ends[message] = len(token_ids) + len(segment.token_ids)
            token_ids += segment.token_ids
        if messages[0].role == "system":
            ends[0] = self._system_end(messages[0], tuple(token_ids))
        ends[-1] = len(token_ids)
        for index in range(1, len(ends)):
            ends[index] = max(ends[index], ends[index - 1])
        is_respelled = messages[last].reasoning is None and any(
            fields[owner].message == last for owner in unfit
        )
        return RenderedPrompt(tuple(token_ids), tuple(ends), text, is_respelled)

    def _system_end(self, system: Message, token_ids: tuple[int, ...]) -> int:
        """How many ids the system text alone decides."""
        if system.content not in self._system_ids:
            self._system_ids[system.content] = ()  # settle_target comes back here
            self._system_ids[system.content] = self.settle_target([system])
        return count_common(token_ids, self._system_ids[system.content])

    def probe_point(self, messages: Sequence[Message], prompt: RenderedPrompt) -> int:
        """How many ids of a prompt will still be there in the next turn, whatever is answered.

        Args:
            messages: The conversation up to the question.
            prompt: Its `render_ids`.

        Returns:
            A position below the prompt's length: the last id is always fed for the answer.
        """
        point = len(prompt.token_ids) - 1
        earlier = self._finder.fields(messages)
        here = self._encoder.encode(
            prompt.text, self._finder.find(messages, earlier, prompt.text, True)
        )
        for answer in self._dummy_answers(prompt.text):
            later = [*messages, answer, Message("user", NEXT_QUESTIONS[0])]
            try:
                text = self.render_text(later)
            except TemplateError:
                continue
            spans = list(self._finder.find(later, earlier, text, True))
            num_fields = len(earlier)
            # The texts of dummies are our own: no second render is needed to find them.
            for part in filter(None, (answer.reasoning, answer.inline or answer.content)):
                at = text.rfind(part)
                if at >= (spans[-1].end if spans else 0):
                    ids = self._encoder.continuation(part)
                    spans.append(Span(at, at + len(part), num_fields, ids))
                    num_fields += 1
            point = min(point, count_common_ids(here, self._encoder.encode(text, spans)))
        return max(point, 0)

    def _dummy_answers(self, prompt_text: str) -> list[Message]:
        """Answers in the form they would be stored in: with thinking where it may come.

        Two that begin differently, and an empty one, which some templates show differently.
        """
        is_open = opened_by(self.markers, prompt_text) is not None
        may_think = not is_closed_by(self.markers, prompt_text)
        answers = []
        for text, thought, thinks in (
            ("Aye, so it is", "Let me see", may_think),
            ("No, never", "Well, first", may_think and is_open),
            ("", "Perhaps", may_think and is_open),
        ):
            inline = f"{self.markers.opener}{thought}{self.markers.closers[0]}{text}"
            if not thinks:
                answers.append(Message("assistant", text))
            elif self._is_inline:
                answers.append(Message("assistant", text, inline=inline))
            else:
                answers.append(Message("assistant", text, reasoning=thought))
        return answers

    def settle_target(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids with which the next prompt will begin, whatever is asked.

        Returns:
            The common prefix of the prompts with four different next questions, without spaces
            at its end; empty if the template refuses them.
        """
        common: tuple[int, ...] | None = None
        for question in NEXT_QUESTIONS:
            try:
                token_ids = self.render_ids([*messages, Message("user", question)]).token_ids
            except TemplateError:
                return ()
            common = token_ids if common is None else common[: count_common(common, token_ids)]
        return self._without_blank(common or ())

    def respells_last(self, messages: Sequence[Message]) -> bool:
        """Whether the next prompt has other ids for the last answer (see `RenderedPrompt`)."""
        try:
            return self.render_ids([*messages, Message("user", NEXT_QUESTIONS[-1])]).is_respelled
        except TemplateError:
            return False

    def draft_target(
        self, messages: Sequence[Message], draft: str, stable: str
    ) -> tuple[tuple[int, ...], int]:
        """The ids with which the next prompt will begin, however its message goes on.

        Args:
            messages: The conversation so far.
            draft: The next message as far as it is written.
            stable: The beginning of it that shall count.

        Returns:
            The common prefix of the prompts with two continuations, empty if the template refuses
            them; and how many of its ids the system prompt alone decides.
        """
        try:
            prompts = [
                self.render_ids([*messages, Message("user", text)])
                for text in (f"{draft}{NEXT_QUESTIONS[0]}", f"{stable}{NEXT_QUESTIONS[2]}")
            ]
        except TemplateError:
            return (), 0
        first, other = prompts
        common = first.token_ids[: count_common(first.token_ids, other.token_ids)]
        is_system = bool(messages) and messages[0].role == "system"
        return self._without_blank(common), first.message_ends[0] if is_system else 0

    def _without_blank(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Leave out spaces at the end: most words take them into their own first token."""
        text = self.tokenizer.token_text
        while token_ids and text(token_ids[-1]).strip(" ") == "":
            token_ids = token_ids[:-1]
        return token_ids

    def splitter(self, prompt: RenderedPrompt) -> ReasoningSplitter:
        """A splitter for the answer to a prompt."""
        return ReasoningSplitter(self.tokenizer, self.markers, prompt.text)

    def opened_by(self, prompt: RenderedPrompt) -> str | None:
        """What the end of a prompt has opened: the opener and its white space, or None."""
        return opened_by(self.markers, prompt.text)

    def stored_answer(
        self, messages: Sequence[Message], prompt: RenderedPrompt, split: Split
    ) -> Message:
        """The form of an answer that renders back to the generated ids, as far as possible.

        The content is the text as it was generated, without one leading blank, or stripped;
        the same for the reasoning.

        Args:
            messages: The conversation up to the question.
            prompt: Its `render_ids`.
            split: The answer, as the splitter of this prompt returned it.

        Raises:
            TemplateError: The template refuses the conversation with this answer.
        """
        held = (*prompt.token_ids, *split.token_ids)
        best = self._plain_answer(split)
        if best.inline is None and best.reasoning and best.reasoning_ids:
            forms = _forms(best.reasoning, best.reasoning_ids, self.tokenizer)
            best = self._best(messages, held, [replace(best, reasoning=form) for form in forms])
        if best.content_ids:
            shown = best.content if best.inline is None else best.inline
            forms = _forms(shown, best.content_ids, self.tokenizer)
            if best.inline is None:
                answers = [replace(best, content=form) for form in forms]
            else:
                answers = [replace(best, inline=form) for form in forms]
            best = self._best(messages, held, answers)
        self.render_text([*messages, best, Message("user", NEXT_QUESTIONS[0])])
        return best

    def _plain_answer(self, split: Split) -> Message:
        """The answer as it was generated, thinking apart or inline."""
        answer = Message(
            "assistant",
            split.text,
            reasoning=split.reasoning,
            content_ids=split.content_ids,
            reasoning_ids=split.reasoning_ids or None,
        )
        if split.reasoning is None or not self._is_inline:
            return answer
        opener = split.opened or ""
        ids = (*self._encoder.continuation(opener), *split.token_ids)
        inline = self.tokenizer.decode_continuation(ids)
        if inline is None:
            inline = self.tokenizer.decode(ids, skip_special_tokens=False)
        return replace(answer, inline=inline, content_ids=ids)

    def _best(
        self, messages: Sequence[Message], held: tuple[int, ...], answers: list[Message]
    ) -> Message:
        """The answer whose next prompt shares most ids with what the model has read."""
        best, best_length = answers[0], -1
        for answer in answers if len(answers) > 1 else []:
            try:
                later = self.render_ids([*messages, answer, Message("user", NEXT_QUESTIONS[0])])
            except TemplateError:
                continue
            length = count_common(held, later.token_ids)
            if length > best_length:
                best, best_length = answer, length
            if length == len(held):
                break
        return best


def _forms(text: str, token_ids: tuple[int, ...], tokenizer: Tokenizer) -> list[str]:
    """The forms in which a text may be stored, the likeliest first, each once."""
    forms = [text]
    inside = tokenizer.decode_continuation(token_ids)
    if inside is not None and inside != text and inside.strip() == text.strip():
        forms.append(inside)
    if text[:1].isspace():
        forms.append(text[1:])
    forms += [text.strip("\n"), text.strip()]
    return list(dict.fromkeys(forms))
