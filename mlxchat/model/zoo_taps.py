"""Watching the residual stream of a model of mlx-lm: through the calls of its layer list.

While a pass is watched, stand-ins take the layers' places in the list. They hand the stream to the
taps before and after each layer. What happens inside a layer is mlx-lm's and stays unseen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.taps import Taps, visit

Call = Callable[[mx.array], Any]


class WatchedLayer:
    """Stands in a layer's place and answers for it; `run` does the call.

    Args:
        layer: The layer itself.
        run: Gets the incoming stream and a function that calls the layer, returns what goes on.
    """

    def __init__(self, layer: Module, run: Callable[[mx.array, Call], Any]) -> None:
        self._layer = layer
        self._run = run

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        return type(self._layer)  # some models ask with isinstance what a layer is

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer, or what stands for it; the stream is its first argument."""
        if args:
            return self._run(args[0], lambda x: self._layer(x, *args[1:], **kwargs))
        name = next(iter(kwargs))
        return self._run(kwargs[name], lambda x: self._layer(**{**kwargs, name: x}))


class LayerWatch:
    """Runs a model of mlx-lm with its layers watched or left out.

    Args:
        model: Whose list of layers is used.
        layers: Its blocks in order.
        family: Its name for a person.
    """

    def __init__(self, model: Module, layers: list[Module], family: str) -> None:
        self._list = _find_list(model, layers)
        self._family = family

    @contextmanager
    def _standing_in(self, run: Callable[[int, mx.array, Call], Any]) -> Iterator[None]:
        originals = list(self._list)

        def one(index: int) -> Callable[[mx.array, Call], Any]:
            return lambda x, call: run(index, x, call)

        try:
            self._list[:] = [WatchedLayer(o, one(i)) for i, o in enumerate(originals)]
            yield
        finally:
            self._list[:] = originals

    def run(self, call: Callable[[], mx.array], taps: Taps | None) -> tuple[mx.array, mx.array]:
        """Calls the model with taps on its stream.

        Args:
            call: Calls the model and returns its logits.
            taps: See "resid_pre" and "resid_post".

        Returns:
            The logits, and the stream after the last layer.

        Raises:
            UnsupportedModelError: The layers are not a chain with one stream.
        """
        seen: list[int] = []
        last: list[mx.array] = []

        def watched(index: int, x: mx.array, layer: Call) -> mx.array:
            self._check(x)
            out = layer(visit(taps, "resid_pre", index, x))
            self._check(out)
            seen.append(index)
            last[:] = [visit(taps, "resid_post", index, out)]
            return last[0]

        with self._standing_in(watched):
            logits = call()
        if seen != list(range(len(self._list))):
            raise self._refuse("its layers do not run once each in order")
        return logits, last[0]

    def unembed(self, call: Callable[[], mx.array], x: mx.array) -> mx.array:
        """Returns the logits of a stream: the model with `x` (B, T, D) put after its last layer.

        Raises:
            UnsupportedModelError: More than a norm and a head follows the layers.
        """
        with self._standing_in(lambda index, stream, layer: x):
            try:
                return call()
            except (AssertionError, TypeError, AttributeError, ValueError, KeyError) as fault:
                raise self._refuse("its head does not run apart from its layers") from fault

    def embed(self, call: Callable[[], mx.array]) -> mx.array:
        """Returns the stream that the first layer gets."""
        first: list[mx.array] = []

        def grab(index: int, stream: mx.array, layer: Call) -> mx.array:
            first.append(stream)
            return stream

        with self._standing_in(grab):
            call()
        self._check(first[0] if first else None)
        return first[0]

    def _check(self, stream: Any) -> None:
        if not isinstance(stream, mx.array) or stream.ndim != 3:
            raise self._refuse("its layers pass more than one stream")

    def _refuse(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the hidden states of {self._family} cannot be read: {reason};"
            " try a model of a native family (llama, qwen3, gemma3, ...)"
        )


def _find_list(model: Module, layers: list[Module]) -> list[Any]:
    """Returns the very list in the model that holds the layers."""
    for module in model.modules():  # type: ignore[no-untyped-call]
        for value in module.values():
            if isinstance(value, list) and value and layers and value[0] is layers[0]:
                return value
    return []
