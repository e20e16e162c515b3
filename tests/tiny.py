"""Tiny models for tests: folders on disk, a recurrent stand-in, and sessions over them.

The folders hold a random float32 model of a native family, a byte-level tokenizer of 300 ids with
merges, and a chat template. Sampled answers are mostly printable ASCII, split into ids otherwise
than the tokenizer would split their text, as those of real models often are.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bad_folders import tokenizer_json, write_json
from hypothesis import HealthCheck, settings

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.chat.prompt_keeping import open_keeping  # noqa: E402
from mlxchat.chat.results import TextDelta, TurnResult  # noqa: E402
from mlxchat.chat.session import ChatOptions, Session  # noqa: E402
from mlxchat.engine.chunking import PrefillChunker  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.options import SamplingSettings  # noqa: E402
from mlxchat.engine.worker import Job  # noqa: E402
from mlxchat.model.families import make_model_config  # noqa: E402
from mlxchat.model.kv_cache import RowCache  # noqa: E402
from mlxchat.model.language_model import ModelInfo  # noqa: E402
from mlxchat.model.loader import LoadedModel, load_model  # noqa: E402
from mlxchat.model.sequence_cache import SequenceCache  # noqa: E402
from mlxchat.model.state_cache import RecurrentState  # noqa: E402
from mlxchat.model.weights import expected_shapes  # noqa: E402

# Bounded, and always the same examples: a red run must mean that the change broke something.
# MLXCHAT_TEST_EXPLORE=1 looks for new ones.
bounded = partial(
    settings,
    deadline=None,
    derandomize=not os.environ.get("MLXCHAT_TEST_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

KINDS = ("full", "window", "recurrent")
WINDOW = 16
# The first four are those of `tokenizer_json`; ids of the whole vocabulary, in order.
END_OF_TEXT, IM_END, IM_START, PAD, THINK, END_THINK = range(6)
EOS_IDS = frozenset({END_OF_TEXT, IM_END})
VOCAB_SIZE = 300
_PIECES = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le "
    "Ġt Ġa the ing and"
)
_MERGES = _PIECES.split()

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens the thinking itself and drops that of earlier turns, as most reasoning templates do.
REASONING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# Keeps earlier thinking in the prompt when asked to.
KEEPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and preserve_thinking %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": sorted(EOS_IDS),
}
_KIND_CONFIGS: dict[str, dict[str, Any]] = {
    "full": {"model_type": "llama"},
    "window": {
        "model_type": "mistral",
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
_KIND_CONFIGS["recurrent"] = _KIND_CONFIGS["full"]


def make_tokenizer_json() -> dict[str, Any]:
    """Six added tokens, the 256 bytes, and merges up to 300 ids."""
    tokenizer = tokenizer_json()
    specials = [token["content"] for token in tokenizer["added_tokens"]]
    thinking = ["<think>", "</think>"]
    letters = list(tokenizer["model"]["vocab"])[len(specials) :]
    merges = _MERGES + ["<unused>"] * (VOCAB_SIZE - len(specials + thinking + letters + _MERGES))
    tokens = specials + thinking + letters
    tokens += [t if t in _MERGES else f"<unused{i}>" for i, t in enumerate(merges)]
    assert len(tokens) == VOCAB_SIZE
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    tokenizer["model"]["merges"] = [f"{t[:-1]} {t[-1]}" for t in _MERGES[:-3]]
    tokenizer["model"]["merges"] += ["th e", "in g", "an d"]
    flags = {**tokenizer["added_tokens"][0], "special": False}
    tokenizer["added_tokens"] += [
        {**flags, "id": tokens.index(token), "content": token} for token in thinking
    ]
    return tokenizer


def printable_ids() -> list[int]:
    """The ids whose text is printable ASCII."""
    vocab = make_tokenizer_json()["model"]["vocab"]
    return [
        i
        for token, i in vocab.items()
        if i > END_THINK and token.replace("Ġ", " ").isascii() and "unused" not in token
    ]


def make_tiny_folder(
    folder: Path, kind: str = "full", *, template: str | None = CHATML, seed: int = 0, **config: Any
) -> Path:
    """Writes a model folder and returns it.

    Args:
        folder: Is made.
        kind: "full" or "window" attention.
        template: The chat template, or None for a model without one.
        seed: Of the weights.
        config: Replaces values of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    full = {**_SHAPE, **_KIND_CONFIGS[kind], **config}
    write_json(folder / "config.json", full)
    write_json(folder / "tokenizer.json", make_tokenizer_json())
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    names |= {} if template is None else {"chat_template": template}
    write_json(folder / "tokenizer_config.json", names)
    mx.save_safetensors(str(folder / "model.safetensors"), make_weights(full, seed))
    return folder


def make_weights(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Random float32 weights; only printable tokens get logits other than 0."""
    key = mx.random.key(seed)
    weights = {}
    for name, shape in expected_shapes(make_model_config(config)).items():
        key, sub = mx.random.split(key)
        value = mx.random.normal(shape, key=sub)
        weights[name] = 1.0 + 0.2 * value if len(shape) == 1 else value / shape[-1] ** 0.5
    rows = mx.zeros((config["vocab_size"], 1)).at[mx.array(printable_ids())].add(3.0)
    if "lm_head.weight" in weights:
        weights["lm_head.weight"] = weights["lm_head.weight"] * rows
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 4.0
    mx.eval(weights)
    return weights


class RecurrentModel:
    """A model with nothing but a small state, so that no position can be reached backwards.

    The state decays and adds the embedding of each token: h = g * h + e. Order and distance count,
    and a chunk has a closed form, so chunked feeding is exact up to rounding.
    """

    can_pad = False

    D = 16

    def __init__(self, seed: int = 0, max_context: int = 1024) -> None:
        keys = mx.random.split(mx.random.key(seed), 2)
        self.embed = mx.random.normal((VOCAB_SIZE, self.D), key=keys[0])
        rows = mx.zeros((1, VOCAB_SIZE)).at[:, mx.array(printable_ids())].add(1.0)
        self.head = mx.random.normal((self.D, VOCAB_SIZE), key=keys[1]) * rows
        self.decay = mx.linspace(0.6, 0.98, self.D)
        mx.eval(self.embed, self.head, self.decay)
        self.info = ModelInfo("recurrent", 1, VOCAB_SIZE, max_context, 0, 0)

    def make_cache(self) -> SequenceCache:
        raw = _State()
        return SequenceCache([raw], [RecurrentState(raw)])

    def find_stack(self) -> None:
        """Nothing is known of this kind."""

    def forward(self, token_ids: Any, cache: SequenceCache) -> Any:
        raw = cache.raw[0]
        num = token_ids.shape[1]
        powers = self.decay ** mx.arange(num - 1, -1, -1)[:, None]  # (T, D)
        state = mx.sum(self.embed[token_ids] * powers, axis=1)  # (B, D)
        if raw.cache[0] is not None:
            state = state + raw.cache[0] * self.decay**num
        raw.cache = [state]
        return mx.tanh(state) @ self.head

    def prefill(self, token_ids: Any, cache: SequenceCache) -> None:
        self.forward(token_ids, cache)


class _State:
    """What mlx-lm's recurrent caches look like from outside."""

    def __init__(self) -> None:
        self.cache: list[Any] = [None]


class CountingModel:
    """Any model, with the number of ids of each forward pass, and a hook before it.

    Buffers grow by 8 rows instead of 256, so that windows drop rows within a short test.

    Attributes:
        calls: T of each forward pass.
        hook: Called before each; what it raises, the forward pass raises.
        is_live: Says of which caches passes count: in sessions not of those of `--verify`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.info = model.info
        self.calls: list[int] = []
        self.hook: Callable[[], None] | None = None
        self.is_live: Callable[[SequenceCache], bool] = lambda cache: True

    def make_cache(self) -> SequenceCache:
        cache = self.model.make_cache()
        for layer in cache.layers:
            if isinstance(layer, RowCache):
                layer.step = 8
        return cache

    def forward(self, token_ids: Any, cache: SequenceCache, *taps: Any) -> Any:
        self._count(token_ids, cache)
        return self.model.forward(token_ids, cache, *taps)

    def forward_all(self, token_ids: Any, cache: SequenceCache, *taps: Any) -> Any:
        self._count(token_ids, cache)
        return self.model.forward_all(token_ids, cache, *taps)

    def prefill(self, token_ids: Any, cache: SequenceCache, *taps: Any) -> None:
        self._count(token_ids, cache)
        self.model.prefill(token_ids, cache, *taps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)  # what the lens asks for

    def _count(self, token_ids: Any, cache: SequenceCache) -> None:
        if not self.is_live(cache):
            return
        self.calls.append(token_ids.shape[1])
        if self.hook is not None:
            self.hook()

    def after(self, num_calls: int, action: Callable[[], None]) -> None:
        """Calls `action` once, before the forward pass that follows `num_calls` more."""
        left = [num_calls]

        def count() -> None:
            if left[0] == 0:
                self.hook = None
                action()
            left[0] -= 1

        self.hook = count


def make_model(kind: str, folder: Path, **config: Any) -> CountingModel:
    """A counting model of a kind, without a session around it; call it on the thread of use."""
    if kind == "recurrent":
        return CountingModel(RecurrentModel())
    return CountingModel(load_model(make_tiny_folder(folder, kind, **config)).model)


class TinySession(Session):
    """A session over a tiny folder, with its parts in reach of a test.

    Args:
        folder: Written by `make_tiny_folder`.
        kind: "recurrent" swaps the folder's model for the recurrent one.
        options: As `ChatOptions`; the default is seeded, 12 tokens long and verified, without
            idle work: a test settles when it wants to.
        chunk: Fixed length of prefill chunks; None follows the measured rate.
    """

    def __init__(
        self, folder: Path, kind: str = "full", *, chunk: int | None = 8, **options: Any
    ) -> None:
        defaults: dict[str, Any] = {
            "sampling": SamplingSettings(temperature=1.0, top_p=1.0, seed=5),
            "max_tokens": 12,
            "verify": True,
            "idle_work": False,
        }
        super().__init__(str(folder), ChatOptions(**{**defaults, **options}))
        self.load().result()
        self._worker.run(lambda _: self._swap(kind, chunk))

    def _swap(self, kind: str, chunk: int | None) -> None:
        runner = self.runner
        loaded: LoadedModel = runner.loaded
        self.model_ = CountingModel(RecurrentModel() if kind == "recurrent" else loaded.model)
        self.model_.is_live = lambda cache: cache is self.prefix.cache
        runner.loaded = replace(
            loaded, model=self.model_, fingerprint=f"{kind} {loaded.fingerprint}"
        )
        runner.engine = Engine(self.model_)
        runner.keeping = open_keeping(
            runner.name,
            runner.loaded,
            runner.engine.prefix,
            keeps_conversation=self.options.stores_conversation,
            max_gib=self.options.cache_max_gib,
        )
        if chunk is not None:
            runner.engine.chunker = PrefillChunker(size=chunk, largest=chunk)

    @property
    def runner(self) -> Any:
        return self._runner

    @property
    def prefix(self) -> Any:
        return self.runner.engine.prefix

    def say(self, text: str) -> TurnResult:
        """Sends a message and returns its checked answer."""
        return checked(self, self.send(text))

    def settle(self) -> None:
        """Does the idle work now and waits for it."""
        self._worker.run(lambda context: self.runner.idle.settle(self.conversation, context))

    def interrupted(self, start: Callable[[], Job[Any]], num_calls: int) -> Job[Any]:
        """Starts a job and cancels it, from this thread, during a forward pass.

        Args:
            start: Starts it.
            num_calls: Passes before the one that is interrupted (it is done to its end).
        """
        reached, go = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            go.wait(20)

        self.model_.after(num_calls, wait)
        job = start()
        while not job.done and not reached.wait(0.002):
            pass
        job.cancel()
        go.set()
        while not job.done:
            time.sleep(0.001)
        self.model_.hook = None
        return job


def checked(session: TinySession, job: Job[TurnResult]) -> TurnResult:
    """The result of a turn, after everything that must hold of every turn."""
    result = job.result(60)
    check_turn(session, result)
    return result


def check_turn(session: TinySession, result: TurnResult) -> None:
    """Checks what holds of every answer: counts add up, and the cached prompt was exact."""
    usage = result.usage
    assert usage.prompt_tokens == usage.cached_tokens + usage.prefill_tokens
    assert usage.prefill_tokens >= (0 if usage.typeahead_tokens else 1)
    assert usage.completion_tokens == len(result.tokens)
    assert not EOS_IDS & set(result.tokens)
    verify = result.verify
    if verify is not None:
        assert verify.tokens_equal
        assert verify.holds
        assert verify.max_abs_logit_diff <= 1e-3
        assert len(verify.prompt_ids) == usage.prompt_tokens
        if session.options.idle_work:
            return  # the cache may have moved on already
        held = session.prefix.token_ids
        assert tuple(held[: len(verify.prompt_ids)]) == verify.prompt_ids
        generated = tuple(held[len(verify.prompt_ids) :])
        assert generated[: len(result.tokens)] == result.tokens[: len(generated)]


def biased(*pairs: tuple[int, float], seed: int = 5, temperature: float = 1.0) -> SamplingSettings:
    """Sampling that makes some ids likelier: end-of-turn tokens, thinking markers."""
    return SamplingSettings(temperature=temperature, top_p=1.0, seed=seed, logit_bias=pairs)


def slow_tokens(model: Any, prompt: Sequence[int], sampler: Any, num: int) -> list[int]:
    """The oracle of decoding: reads everything again for every token."""
    tokens: list[int] = []
    while len(tokens) < num:
        logits = model.forward(mx.array([[*prompt, *tokens]]), model.make_cache())
        tokens.append(sampler.sample(logits).item())
    return tokens


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


Open = Callable[..., TinySession]


@contextlib.contextmanager
def open_sessions(folder: Path, template: str = CHATML, **defaults: Any) -> Iterator[Open]:
    """Yields what opens sessions, each on a tiny folder of its own; closes them in the end.

    Args:
        folder: Where the models are made.
        template: Of the sessions, where the call names none.
        defaults: Options of the sessions, where the call names no others.
    """
    numbers = itertools.count()
    chosen = template
    with contextlib.ExitStack() as stack:

        def open_(kind: str = "full", template: str | None = chosen, **options: Any) -> TinySession:
            name = "full" if kind == "recurrent" else kind
            made = make_tiny_folder(folder / str(next(numbers)), name, template=template)
            session = TinySession(made, kind, **{**defaults, **options})
            return stack.enter_context(contextlib.closing(session))

        yield open_


def collect(job: Job[Any], reasoning: str = "", answer: str = "") -> dict[str, str]:
    """Returns what a job shows of thinking and answer, after what was shown before."""
    shown = {"reasoning": reasoning, "answer": answer}
    for event in job:
        if isinstance(event, TextDelta):
            shown[event.kind] += event.text
    return shown
