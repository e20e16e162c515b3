"""From logits to the next token: penalties, truncation, a draw with an explicit key.

The order is that of Hugging Face's generation: the mask of a grammar, penalties, logit bias, then
temperature and truncation (`truncation.py`), then XTC (`xtc.py`). All of it is lazy array work on
the worker thread; nothing here grows with the text, since penalties keep one count per vocabulary
entry. Source of the repetition penalty: Keskar et al. 2019.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, cast

import mlx.core as mx

from mlxchat.engine.constraint import Constraint, apply_mask
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.truncation import truncated_logprobs
from mlxchat.engine.xtc import exclude_top_choices
from mlxchat.model.exponential import softmax_parts
from mlxchat.settings import SAMPLING_BOUNDS

_KEYS_AT_ONCE = 64  # one split serves this many tokens
# Passes over one and over several tokens round differently, by about 1e-6 of the largest logit in
# float32 and one step of bfloat16 in half precision. Where the two best are nearer, the order in
# which they come out is the pass's and not the model's.
_NEAR_TIE_SHARE = {mx.float32: 1e-5, mx.float16: 1e-2, mx.bfloat16: 1e-2}
# Of the likeliest token's weight: what is smaller is never drawn. Dropped tokens may weigh 1e-30.
_NOTHING = 1e-20
# Below this the likeliest token's lead is all there is, and float32 logits would overflow.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings with every default filled in: what one answer is sampled with."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_spared: tuple[int, ...] = ()

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def resolve_sampling(
    settings: SamplingSettings,
    generation_config: Mapping[str, Any],
    seed: int,
    spared: tuple[int, ...] = (),
) -> Sampling:
    """Fills in what the person left open: generation_config.json first, then our defaults.

    Args:
        settings: What the person asked for.
        generation_config: The checkpoint's own defaults; values that are not allowed are ignored.
        seed: Of this answer; each retry of a question has its own.
        spared: Ids that XTC never drops.
    """
    chosen: dict[str, Any] = {}
    is_greedy = generation_config.get("do_sample") is False
    truncation = () if is_greedy else ("temperature", "top_p", "top_k", "min_p")
    for name in (*truncation, "repetition_penalty"):
        value = generation_config.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if SAMPLING_BOUNDS[name].allow(value):
            chosen[name] = int(value) if name == "top_k" else float(value)
    if "top_p" not in chosen and chosen.keys() & truncation:
        chosen["top_p"] = 1.0  # the checkpoint names its own truncation
    if is_greedy:
        chosen["temperature"] = 0.0
    named = {f.name: getattr(settings, f.name) for f in fields(settings)}
    chosen |= {name: value for name, value in named.items() if value is not None}
    return replace(Sampling(), **{**chosen, "seed": seed, "xtc_spared": spared})


class Sampler:
    """Draws the tokens of one answer.

    Args:
        sampling: The settings.
        vocab_size: V.
        context_ids: Ids before the answer, which penalties count too.
        constraint: What the answer is held to. It must know each token before the next is drawn,
            so a draw waits for the token before it, while the device computes the logits.

    Attributes:
        problem: Why no token could be drawn in a batch; what was drawn instead is no answer's.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        context_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.constraint = constraint
        self.problem: Exception | None = None
        self._untold: mx.array | None = None  # the last draw, which the constraint must be told
        self.sampling = sampling
        self.settings = replace(sampling, seed=0)  # what a row may have in common with others
        self._key = mx.random.key(sampling.seed % 2**64)  # a retry counts up from any seed
        self._keys: deque[mx.array] = deque()
        self._counts: mx.array | None = None
        if sampling.has_penalties:
            ids = mx.array(list(context_ids), mx.int32)
            counts = mx.zeros((vocab_size,), mx.int32)
            self._counts = counts.at[ids].add(1) if ids.size else counts
        self._bias: mx.array | None = None
        in_range = [(i, b) for i, b in sampling.logit_bias if 0 <= i < vocab_size]
        if in_range:
            biased, values = zip(*in_range, strict=True)
            self._bias = mx.zeros((vocab_size,)).at[mx.array(biased)].add(mx.array(values))

    def sample(self, logits: mx.array) -> mx.array:
        """Draws one token from logits (1, V) and counts it; returns its id, shape (1,), lazily."""
        token = self._draw(self.process(logits))
        self.count_drawn(token)
        return token

    def count_drawn(self, token: mx.array) -> None:
        """Counts a token, shape (1,), that may not be evaluated yet."""
        if self.constraint is not None:
            self._untold = token
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1)

    def sample_ahead(self, logits: mx.array, drafts: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Draws the tokens that `sample` would draw, were the drafts before each of them drawn.

        Nothing is counted yet, and no key is spent: `accept` does that.

        Args:
            logits: (T, V), of a token and the T - 1 drafts after it.
            drafts: Ids.

        Returns:
            Ids (T,), and where the likeliest is taken whether the second was too near to tell,
            (T,); both lazily.
        """
        before, rows = self._counts, []
        masks: Sequence[mx.array | None] = [None] * logits.shape[0]
        if self.constraint is not None:
            self._tell(logits)
            masks = self.constraint.masks_ahead(drafts)
        for i, row in enumerate(mx.split(logits, logits.shape[0])):
            if i and self._counts is not None:
                self._counts = self._counts.at[mx.array(drafts[i - 1])].add(1)
            rows.append(self._weigh(apply_mask(row, masks[i])))
        self._counts = before
        if self.is_greedy:
            near = _NEAR_TIE_SHARE.get(logits.dtype, 1e-2) * mx.abs(logits).max(axis=-1)
            return _find_best(mx.concatenate(rows), near)
        drawn = _draw_rows(mx.concatenate(rows), self._peek_keys(len(rows)), self.sampling)
        return drawn, mx.zeros((len(rows),), mx.bool_)

    def accept(self, token_ids: Sequence[int]) -> None:
        """Counts tokens that `sample_ahead` drew, and spends their keys."""
        if not self.is_greedy:
            self._peek_keys(len(token_ids))
            for _ in token_ids:
                self._keys.popleft()
        if self.constraint is not None:
            for token_id in token_ids:
                self.constraint.take(token_id)
        self.count(token_ids)

    @property
    def can_foresee(self) -> bool:
        """Whether `sample_ahead` knows what each of the next tokens may be."""
        return self.constraint is None or self.constraint.is_text

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < _GREEDY_BELOW or self.sampling.top_k == 1

    def count(self, token_ids: Sequence[int], times: int = 1) -> None:
        """Counts ids that were fed without being drawn, or takes back that they were drawn."""
        if self._counts is not None and token_ids:
            self._counts = self._counts.at[mx.array(list(token_ids), mx.int32)].add(times)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Tells what the answer is so far, where not all of that was drawn here or some was lost.

        Raises:
            MlxchatError: The answer is held to a grammar, and does not match it.
        """
        self._untold = None
        if self.constraint is not None:
            self.constraint.follow(token_ids)

    def process(self, logits: mx.array) -> mx.array:
        """Applies the mask of the next token, penalties and bias to logits (1, V)."""
        if self.constraint is not None:
            self._tell(logits)
            logits = apply_mask(logits, self.constraint.mask())
        return self._weigh(logits)

    def _tell(self, logits: mx.array) -> None:
        """Tells the constraint what was drawn last; the device computes these logits meanwhile."""
        if self._untold is not None and self.constraint is not None:
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self.constraint.take(cast(int, self._untold.item()))
            self._untold = None

    def _weigh(self, logits: mx.array) -> mx.array:
        """Applies penalties and bias to logits (1, V)."""
        s = self.sampling
        if self._counts is not None:
            seen = self._counts > 0
            if s.repetition_penalty != 1.0:
                weaker = mx.where(
                    logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty
                )
                logits = mx.where(seen, weaker, logits)
            if s.presence_penalty or s.frequency_penalty:
                logits = logits - s.presence_penalty * seen - s.frequency_penalty * self._counts
        return logits if self._bias is None else logits + self._bias

    def _draw(self, logits: mx.array) -> mx.array:
        if self.is_greedy:
            return mx.argmax(logits, axis=-1)
        return _draw_rows(logits, [self.next_key()], self.sampling)

    def next_key(self) -> mx.array:
        """Returns the random key of the next token, and spends it."""
        self._peek_keys(1)
        return self._keys.popleft()

    def _peek_keys(self, num: int) -> list[mx.array]:
        """Returns the keys of the next tokens."""
        while len(self._keys) < num:
            self._key, *more = list(mx.random.split(self._key, _KEYS_AT_ONCE + 1))
            self._keys += more
        return list(islice(self._keys, num))


def _find_best(scores: mx.array, near: mx.array) -> tuple[mx.array, mx.array]:
    """Returns the best of each row of scores (T, N), and whether the second is nearer than that."""
    best = mx.argmax(scores, axis=-1)
    is_best = mx.arange(scores.shape[-1]) == best[:, None]
    second = mx.where(is_best, -mx.inf, scores).max(axis=-1)
    return best, scores.max(axis=-1) - second < near


def sample_rows(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """Draws a token for each row of a batch; rows of equal settings are drawn at once.

    Each row draws what its sampler alone would draw. Where that fails the sampler has a `problem`.

    Args:
        samplers: One for each row.
        logits: (B, V).

    Returns:
        Token ids (B,), lazily.
    """
    alike: dict[Sampling, list[int]] = {}
    for row, sampler in enumerate(samplers):
        alike.setdefault(sampler.settings, []).append(row)
    if len(alike) == 1:
        return _sample_alike(samplers, logits)
    drawn = [_sample_alike([samplers[i] for i in r], logits[mx.array(r)]) for r in alike.values()]
    places = [row for rows in alike.values() for row in rows]
    return mx.concatenate(drawn)[mx.array([places.index(row) for row in range(len(samplers))])]


def _sample_alike(samplers: Sequence[Sampler], logits: mx.array) -> mx.array:
    """Draws as `sample_rows` does, for rows that have all but their seeds in common."""
    first = samplers[0].sampling
    is_held = any(sampler.constraint is not None for sampler in samplers)
    if first.has_penalties or first.logit_bias or is_held:
        pairs = enumerate(samplers)
        logits = mx.concatenate([_process_row(s, logits[row : row + 1]) for row, s in pairs])
    if samplers[0].is_greedy:
        tokens = mx.argmax(logits, axis=-1)
    else:
        tokens = _draw_rows(logits, [sampler.next_key() for sampler in samplers], first)
    for row, sampler in enumerate(samplers):
        sampler.count_drawn(tokens[row : row + 1])
    return tokens


def _process_row(sampler: Sampler, logits: mx.array) -> mx.array:
    """Processes logits (1, V) of a row of a batch; a row that fails keeps why to itself."""
    try:
        return sampler.process(logits)
    except Exception as error:  # the other rows can do without this one
        sampler.problem, sampler.constraint = error, None
        return logits


def _draw_rows(logits: mx.array, keys: Sequence[mx.array], sampling: Sampling) -> mx.array:
    """Draws a token for each row, above temperature 0; rows have all but their keys in common.

    The draws are those of `mx.random.categorical`, which takes one key at a time: a number between
    0 and the sum of all weights, and the token in whose share of the sum it lies.

    Args:
        logits: (B, V).
        keys: The random key of each row's token, or one for all.
        sampling: Temperature, truncation and XTC.

    Returns:
        Token ids (B,).
    """
    logprobs, ids = truncated_logprobs(
        logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    weights = softmax_parts(logprobs)[0]
    if sampling.xtc_probability > 0.0:
        coins, keys = zip(*(mx.random.split(key) for key in keys), strict=True)
        weights = exclude_top_choices(
            weights,
            ids,
            _draw_numbers(coins, logits.shape[0]),
            probability=sampling.xtc_probability,
            threshold=sampling.xtc_threshold,
            spared=sampling.xtc_spared,
        )
    sums = mx.cumsum(weights, axis=-1)
    drawn = _draw_numbers(keys, logits.shape[0])
    point = mx.maximum(drawn * sums[:, -1:], _NOTHING)
    tokens = mx.argmax(sums > point, axis=-1)
    return tokens if ids is None else mx.take_along_axis(ids, tokens[:, None], axis=-1)[:, 0]


def _draw_numbers(keys: Sequence[mx.array], num_rows: int) -> mx.array:
    """Draws a number from [0, 1) for each row, (B, 1), with its own key or one for all."""
    if len(keys) == 1:
        return mx.random.uniform(shape=(num_rows, 1), key=keys[0])
    numbers: mx.array = _draw_uniforms(mx.stack(list(keys)))
    return numbers


_draw_uniforms = mx.vmap(lambda key: mx.random.uniform(shape=(1,), key=key))
