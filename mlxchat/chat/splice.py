"""Puts generated ids into a rendered text.

Knows how to encode the text between them so that the whole decodes as the text's own encoding
does, and checks it at every seam. Knows nothing of messages and templates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mlxchat.engine.token_ids import count_common
from mlxchat.model.tokenizer import Tokenizer

# How much text on each side of a seam is looked at: longer than any special token with the white
# space it may swallow.
_SEAM_CHARS = 64
# How many blank or special ids at the start of an answer may be left out to make it fit.
_MAX_SKIPPED_IDS = 4
_MAX_CACHE_ENTRIES = 4096

Value = TypeVar("Value")


@dataclass(frozen=True)
class Span:
    """Ids that may stand for text[start:end]; `owner` is the caller's number for them."""

    start: int
    end: int
    owner: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Ids of a stretch of text; `owner` numbers the span they come from, -1 for plain text."""

    token_ids: tuple[int, ...]
    owner: int = -1


def count_common_ids(segments: Sequence[Segment], others: Sequence[Segment]) -> int:
    """How many ids two encodings share at their start; what one took from the other is skipped."""
    pairs = zip(segments, others, strict=False)
    shorter = min(len(segments), len(others))
    same = next((i for i, (a, b) in enumerate(pairs) if a is not b), shorter)
    ids, more = ([i for s in part[same:] for i in s.token_ids] for part in (segments, others))
    return sum(len(segment.token_ids) for segment in segments[:same]) + count_common(ids, more)


@dataclass(frozen=True)
class _Fit:
    """Generated ids that stand for a text and for some characters around it."""

    token_ids: tuple[int, ...]
    num_before: int
    num_after: int


@dataclass
class _Encoded:
    """What the last call of `encode` did; `stops`: segments and characters done, by span."""

    text: str
    spans: Sequence[Span]
    segments: list[Segment]
    stops: list[tuple[int, int]]


class _Cache(OrderedDict[Hashable, Value]):
    """The most recently used values."""

    def get_or(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make()
        if len(self) > _MAX_CACHE_ENTRIES:
            self.popitem(last=False)
        return value


class SegmentEncoder:
    """Encodes text with spans for which ids are given; remembers every piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: _Cache[tuple[int, ...]] = _Cache()
        self._fits: _Cache[_Fit | None] = _Cache()
        self._last = _Encoded("", (), [], [])

    def continuation(self, text: str) -> tuple[int, ...]:
        """The ids of a text that follows other text."""
        return self._encode(text, is_first=False)

    def encode(self, text: str, spans: Sequence[Span]) -> list[Segment]:
        """Encode a text.

        Args:
            text: The whole text.
            spans: Ids that may stand for parts of it, ascending.

        Returns:
            Segments whose ids, joined, decode as the encoding of the whole text does. A span
            whose ids do not fit is encoded with the text around it.
        """
        segments, stops = self._resume(text, spans)
        done = stops[-1][1] if stops else 0
        for number, span in enumerate(spans[len(stops) :], len(stops)):
            limit = spans[number + 1].start if number + 1 < len(spans) else len(text)
            fit = self._fit_into(text, span, done, limit)
            if fit is not None:
                plain = text[done : span.start - fit.num_before]
                if plain:
                    segments.append(Segment(self._encode(plain, is_first=done == 0)))
                segments.append(Segment(fit.token_ids, span.owner))
                done = span.end + fit.num_after
            stops.append((len(segments), done))
        self._last = _Encoded(text, tuple(spans), list(segments), stops)
        if done < len(text):
            segments.append(Segment(self._encode(text[done:], is_first=done == 0)))
        return segments

    def _resume(
        self, text: str, spans: Sequence[Span]
    ) -> tuple[list[Segment], list[tuple[int, int]]]:
        """What the last call did that this one would do again: a conversation grows at its end."""
        last = self._last
        pairs = zip(spans, last.spans, strict=False)
        num_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(last.spans))
        # How a span is encoded depends on the text up to the next one: the last is done again.
        same = max(min(num_equal, len(spans)) - 1, 0)
        while same and not text.startswith(last.text[: spans[same].start]):
            same -= 1
        stops = last.stops[:same]
        return last.segments[: stops[-1][0]] if stops else [], stops

    def _fit_into(self, text: str, span: Span, done: int, limit: int) -> _Fit | None:
        """How a span's ids fit into text[done:limit], if they do."""
        before = text[max(done, span.start - _SEAM_CHARS) : span.start]
        after = text[span.end : min(limit, span.end + _SEAM_CHARS)]
        if not before:
            return None
        shown = text[span.start : span.end]
        make_fit = partial(self._fit, span.token_ids, shown, before, after)
        return self._fits.get_or((span.token_ids, shown, before, after), make_fit)

    def _encode(self, text: str, *, is_first: bool) -> tuple[int, ...]:
        return self._texts.get_or(
            (text, is_first),
            lambda: tuple(self._tokenizer.encode(text, is_continuation=not is_first)),
        )

    def _fit(self, token_ids: tuple[int, ...], shown: str, before: str, after: str) -> _Fit | None:
        """How the ids can stand for the shown text, as much of them as possible."""
        for skipped in range(min(_MAX_SKIPPED_IDS + 1, len(token_ids))):
            if skipped and not self._is_blank(token_ids[skipped - 1]):
                break
            rest = token_ids[skipped:]
            for fit in self._whole_fits(rest, shown, before, after):
                if self._is_exact(fit, shown, before, after):
                    return fit
        for skipped in range(min(_MAX_SKIPPED_IDS + 1, len(token_ids))):
            if skipped and not self._is_blank(token_ids[skipped - 1]):
                break
            fit_or_none = self._partial_fit(token_ids[skipped:], shown, before)
            if fit_or_none and self._is_exact(fit_or_none, shown, before, after):
                return fit_or_none
        return None

    def _is_blank(self, token_id: int) -> bool:
        special = token_id in self._tokenizer.special_ids
        return special or not self._tokenizer.token_text(token_id).strip()

    def _whole_fits(
        self, token_ids: tuple[int, ...], shown: str, before: str, after: str
    ) -> list[_Fit]:
        """All ids: their text is the shown one, with characters of the text around it."""
        text = self._tokenizer.decode_continuation(token_ids)
        at = -1 if text is None else text.find(shown)
        if text is None or at < 0:
            return []
        lead, trail = text[:at], text[at + len(shown) :]
        if not after.startswith(trail):
            return []
        fits = []
        if before.endswith(lead):
            fits.append(_Fit(token_ids, len(lead), len(trail)))
        if lead == " ":
            # Some tokenizers put a space after every special token when they encode a text.
            fits.append(_Fit(token_ids, 0, len(trail)))
        return fits

    def _partial_fit(self, token_ids: tuple[int, ...], shown: str, before: str) -> _Fit | None:
        """The longest beginning that the shown text begins with; the rest is encoded."""
        whole = self._tokenizer.decode_continuation(token_ids) or self._tokenizer.decode(token_ids)
        lead = whole[: len(whole) - len(whole.lstrip())]
        lead = lead if lead and before.endswith(lead) and not shown.startswith(lead) else ""
        target = lead + shown
        low, high = 0, len(token_ids)
        while low < high:
            middle = (low + high + 1) // 2
            text = self._tokenizer.decode_continuation(token_ids[:middle])
            if text is not None and target.startswith(text):
                low = middle
            else:
                high = middle - 1
        if not low:
            return None
        text = self._tokenizer.decode_continuation(token_ids[:low]) or ""
        rest = target[len(text) :]
        return _Fit((*token_ids[:low], *self.continuation(rest)), len(lead), 0)

    def _is_exact(self, fit: _Fit, shown: str, before: str, after: str) -> bool:
        """Whether both seams decode as the encoding of the text does."""
        decode, encode = self._tokenizer.decode, self._tokenizer.encode
        head = encode(before[: len(before) - fit.num_before])
        tail = encode(after[fit.num_after :], is_continuation=True)
        spliced = [*head, *fit.token_ids, *tail]
        return decode(spliced, skip_special_tokens=False) == decode(
            encode(before + shown + after), skip_special_tokens=False
        )
