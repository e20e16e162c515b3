"""The markers that models put around their thinking, and where a prompt has left them."""

from __future__ import annotations

from dataclasses import dataclass

from mlxchat.chat.template import ChatTemplate
from mlxchat.errors import TemplateError
from mlxchat.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Markers:
    """The signs around thinking.

    Attributes:
        opener: Opens thinking at the start of an answer.
        closers: Any of them ends thinking.
        joints: Stand inside thinking and are no part of it.
        answer_openers: Stand before the answer proper and are no part of it.
        after_opener: White space that belongs to the opener.
        before_closer: White space that belongs to the closer.
        after_closer: White space between the closer and the answer.
    """

    opener: str
    closers: tuple[str, ...]
    joints: tuple[str, ...] = ()
    answer_openers: tuple[str, ...] = ()
    after_opener: str = "\n"
    before_closer: str = "\n"
    after_closer: str = "\n\n"


_HARMONY_NEXT = "<|end|><|start|>assistant<|channel|>"
_DEFAULT = Markers("<think>", ("</think>",))
# Looked for in this order in the template, then among the tokens; `<think>` is the last guess.
_KNOWN = (
    Markers(
        "<|channel|>analysis<|message|>",
        (f"{_HARMONY_NEXT}final<|message|>", f"{_HARMONY_NEXT}commentary<|message|>"),
        joints=(f"{_HARMONY_NEXT}analysis<|message|>",),
        answer_openers=("<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
    ),
    Markers("<|channel>thought", ("<channel|>",)),
    Markers("<|START_THINKING|>", ("<|END_THINKING|>",), answer_openers=("<|START_RESPONSE|>",)),
    Markers("<seed:think>", ("</seed:think>",)),
    Markers("[THINK]", ("[/THINK]",)),
    Markers("<longcat_think>", ("</longcat_think>",)),
    Markers("<|think:start|>", ("<|think:end|>",)),
    Markers("◁think▷", ("◁/think▷",)),
    Markers(
        "<|begin_of_thought|>",
        ("<|end_of_thought|>",),
        answer_openers=("<|begin_of_solution|>",),
    ),
    Markers("<unused94>thought", ("<unused95>",)),
    _DEFAULT,
)


def find_markers(template: ChatTemplate, tokenizer: Tokenizer) -> Markers:
    """The markers of a model, with the white space that its template puts around them."""
    for known in _KNOWN:
        if known.closers[0] in template.source or (
            known.opener in template.source and known is not _DEFAULT
        ):
            return _with_template_space(known, template)
    for known in _KNOWN:
        if tokenizer.token_id(known.opener) is not None:
            return known
    return _DEFAULT


def _with_template_space(markers: Markers, template: ChatTemplate) -> Markers:
    """Read the white space around the markers off a rendered answer, if the template shows one."""
    thought, answer = "\ue0a1thought\ue0a1", "\ue0a2answer\ue0a2"
    reply = {"role": "assistant", "content": answer, "reasoning_content": thought}
    messages = [{"role": "user", "content": "u"}, reply]
    try:
        text = template.render(messages, add_generation_prompt=False)
    except TemplateError:
        return markers
    before, found, rest = text.partition(thought)
    between, found_answer, _ = rest.partition(answer)
    at = between.find(markers.closers[0])
    if not found or not found_answer or at < 0:
        return markers
    after = between[at + len(markers.closers[0]) :]
    for opener in markers.answer_openers:
        after = after.replace(opener, "")
    return Markers(
        markers.opener,
        markers.closers,
        markers.joints,
        markers.answer_openers,
        after_opener=before[len(before.rstrip()) :] if markers.opener in before else "",
        before_closer=between[:at] if not between[:at].strip() else "",
        after_closer=after if not after.strip() else "",
    )


def opened_by(markers: Markers, prompt_text: str) -> str | None:
    """What the end of a prompt has already opened.

    Returns:
        The opener with the white space after it, if the prompt ends inside thinking; None if
        the model itself decides or thinking is closed.
    """
    text = prompt_text.rstrip()
    if text.endswith(markers.opener):
        return prompt_text[len(text) - len(markers.opener) :]
    return None


def is_closed_by(markers: Markers, prompt_text: str) -> bool:
    """Whether the end of a prompt has thinking opened and closed: the model will not think."""
    text = prompt_text.rstrip()
    return any(text.endswith(closer) for closer in markers.closers)
