"""Chat templates: messages to the text that the model was trained on.

Knows the template's text, its switches and its quirks (no system role, no template at all). The
text equals what transformers' `apply_chat_template` renders. Token ids are `chat/prompt.py`'s,
thinking markers `chat/reasoning_markers.py`'s business. jinja2 is imported on first use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mlxchat.errors import TemplateError

if TYPE_CHECKING:
    from mlxchat.model.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
# The names under which reasoning travels; transformers copies it to the first two.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

# name, value for thinking on, value for thinking off. None: leave the name out.
_THINK_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("reasoning", True, False),
    ("thinking_budget", None, 0),
    ("thinking_mode", "thinking", "chat"),
    ("reasoning_effort", None, "none"),
)
_KEEP_SWITCHES: tuple[tuple[str, Any], ...] = (
    ("preserve_thinking", True),
    ("clear_thinking", False),
    ("truncate_history_thinking", False),
    ("think_render_option", "all"),
    ("keep_all_reasoning", True),
    ("drop_thinking", False),
)

_THINKS = re.compile("think|reasoning|analysis", re.IGNORECASE)

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% elif message.role == 'user' %}{{ 'User: ' + message.content + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message.content + (eos_token or '') + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: The text handed to the template.
        reasoning: The thinking before the answer, handed over in the template's own field.
        content_ids: The ids the model generated for the content; None for typed text.
        reasoning_ids: The ids the model generated for the reasoning.
        inline: Thinking and answer as one text. Where set, the template gets it as the content,
            and `content_ids` are its ids: for templates without a field for reasoning.
    """

    role: Role
    content: str
    reasoning: str | None = None
    content_ids: tuple[int, ...] | None = None
    reasoning_ids: tuple[int, ...] | None = None
    inline: str | None = None

    @cached_property
    def fields(self) -> dict[str, str]:
        """The message as templates read it, made once for many renders: not to be changed."""
        if self.inline is not None:
            return {"role": self.role, "content": self.inline}
        fields = {"role": self.role, "content": self.content}
        if self.reasoning:
            fields |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        return _with_reasoning_fields(fields)


class ChatTemplate:
    """A template with everything that stays fixed during a conversation.

    Attributes:
        source: The Jinja text.
        kwargs: Switches passed on every render (`enable_thinking`, ...).
        now: The date that `strftime_now` shows for the whole conversation.
        notices: One line for each thing the person should know; more may come while rendering.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.kwargs = dict(kwargs or {})
        self.now = now or datetime.now()
        self.notices = list(notices)

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: Tokenizer,
        *,
        now: datetime | None = None,
        think: bool | None = None,
        keep_thinking: bool = False,
    ) -> ChatTemplate:
        """The template that a model ships, or a plain one with a notice if it ships none.

        Args:
            tokenizer: Gives the template text and the special tokens.
            now: The date of the conversation; now if None.
            think: Turn thinking on or off; None leaves the template's default.
            keep_thinking: Keep earlier thinking in the prompt if the template can.

        Raises:
            TemplateError: The template cannot be read.
        """
        source, notices = tokenizer.chat_template, []
        if source is None:
            has_chatml = tokenizer.token_id("<|im_start|>") is not None
            source = _CHATML if has_chatml else _PLAIN
            form = "ChatML" if has_chatml else '"User: / Assistant:"'
            notices.append(f"this model has no chat template; using the {form} form")
        template = cls(source, special_tokens=tokenizer.special_tokens, now=now, notices=notices)
        if think is not None or keep_thinking:
            return template.with_thinking(think, keep_thinking)
        return template

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Render messages exactly as transformers' `apply_chat_template` does.

        Raises:
            TemplateError: The template is broken or refuses the messages; one line.
        """
        dicts = [_with_reasoning_fields(message) for message in messages]
        return self._render(dicts, add_generation_prompt)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        from mlxchat.chat.jinja_env import render

        if not messages:
            raise TemplateError("there is no message to render; say something first")
        variables: dict[str, Any] = {
            "strftime_now": self.now.strftime,
            **self.special_tokens,
            **self.kwargs,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return render(self.source, variables)
        except Exception as error:
            raise TemplateError(_explain(error)) from error

    def render_messages(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation; see `to_dicts` for models without a system role."""
        return self._render(self.to_dicts(messages), add_generation_prompt)

    def to_dicts(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Messages as the template reads them: the messages' own dicts, not to be changed.

        Where the template has no system role, a leading system text is put before the first
        user message, and the list is one shorter.
        """
        dicts = [message.fields for message in messages]
        if len(dicts) > 1 and dicts[0]["role"] == "system" and not self._has_system_role:
            system, first, *rest = dicts
            if first["role"] == "user":
                return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]
            return [{"role": "user", "content": system["content"]}, first, *rest]
        return dicts

    @cached_property
    def _has_system_role(self) -> bool:
        """Whether a system text shows up at all; asked of the template itself, once."""
        user = {"role": "user", "content": "u"}
        system = {"role": "system", "content": "\ue0a0system\ue0a0"}
        try:
            if system["content"] in self.render([system, user]):
                return True
        except TemplateError:
            pass
        try:
            self.render([user])
        except TemplateError:
            return True
        notice = "this model has no system role; the system text is put before the first message"
        if notice not in self.notices:
            self.notices.append(notice)
        return False

    @cached_property
    def switches(self) -> frozenset[str]:
        """The thinking switches that the template reads."""
        from mlxchat.chat.jinja_env import read_variables

        known = frozenset(name for name, *_ in (*_THINK_SWITCHES, *_KEEP_SWITCHES))
        try:
            return known & read_variables(self.source)
        except Exception as error:
            raise TemplateError(_explain(error)) from error

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all that decides the text, besides the messages."""
        shows_date = "strftime_now" in self.source
        date = self.now.date().isoformat() if shows_date else None
        parts = [self.source, self.special_tokens, self.kwargs, date]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]

    def with_kwargs(self, kwargs: Mapping[str, Any], notices: Sequence[str] = ()) -> ChatTemplate:
        """The same template and date with other switches."""
        return ChatTemplate(
            self.source,
            special_tokens=self.special_tokens,
            kwargs=kwargs,
            now=self.now,
            notices=list(dict.fromkeys([*self.notices, *notices])),
        )

    def with_thinking(self, think: bool | None, keep_thinking: bool = False) -> ChatTemplate:
        """The same template with thinking turned on or off, and earlier thinking kept or not.

        Only switches that the template reads and that change its text are set. What it cannot
        do becomes a notice.
        """
        kwargs, notices = self._think_kwargs(think)
        template = self.with_kwargs(kwargs, notices)
        return template._keeping_thinking() if keep_thinking else template

    def _think_kwargs(self, think: bool | None) -> tuple[dict[str, Any], list[str]]:
        if think is None:
            return {}, []
        chosen: dict[str, Any] = {}
        for name, on, off in _THINK_SWITCHES:
            value = on if think else off
            if name in self.switches and value is not None and self._has_effect(name, on, off):
                chosen[name] = value
        if chosen or (think and _THINKS.search(self.source)):
            # A template without a switch that knows of thinking is always on.
            return chosen, []
        word = "on" if think else "off"
        return {}, [f"this model's template has no switch to turn thinking {word}"]

    def _has_effect(self, name: str, on: Any, off: Any) -> bool:
        """Whether a switch changes the prompt of a one-message conversation."""
        if name == "reasoning_effort" and f'"{off}"' not in self.source.replace("'", '"'):
            # A level that the template does not name would be printed, not obeyed.
            return False
        try:
            texts = [
                self.with_kwargs({} if value is None else {name: value}).render(
                    [{"role": "user", "content": "u"}]
                )
                for value in (on, off)
            ]
        except TemplateError:
            return False
        return texts[0] != texts[1]

    def shows_reasoning(self, *, inline: tuple[str, str] | None = None) -> bool:
        """Whether thinking of an earlier answer shows in the prompt.

        Args:
            inline: Opening and closing marker to put it into the content; None: in its field.
        """
        thought, answer = "\ue0a1thought\ue0a1", "answer"
        earlier = {"role": "assistant", "content": answer}
        if inline is None:
            earlier |= {"reasoning_content": thought, "reasoning": thought}
        else:
            earlier["content"] = f"{inline[0]}{thought}{inline[1]}{answer}"
        user = {"role": "user", "content": "u"}
        try:
            return thought in self.render([user, earlier, user])
        except TemplateError:
            return False

    def _keeping_thinking(self) -> ChatTemplate:
        if self.shows_reasoning():
            return self
        for name, value in _KEEP_SWITCHES:
            if name in self.switches:
                template = self.with_kwargs(self.kwargs | {name: value})
                if template.shows_reasoning():
                    return template
        return self


def _with_reasoning_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop fields that are None and copy reasoning to the names transformers copies it to."""
    plain = {name: value for name, value in message.items() if value is not None}
    for name in REASONING_FIELDS:
        if name in plain:
            return {"thinking": plain[name], **plain, "reasoning_content": plain[name]}
    return plain


def _explain(error: Exception) -> str:
    """One line on what a template raised."""
    from jinja2 import TemplateSyntaxError

    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        return f"the chat template is broken in line {error.lineno}: {text}; fix or replace it"
    return f"the chat template refuses this conversation: {text}"
