"""What a person may set about sampling. Free of MLX, so that the command line can use it."""

from collections.abc import Callable
from dataclasses import dataclass

from mlxchat.errors import UsageError


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling as asked for; None follows the model's generation_config.json, else our default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None

    def validate(self) -> None:
        """Checks every value that is set.

        Raises:
            UsageError: Names the value, what is allowed, and exits with 2.
        """
        checks: tuple[tuple[str, float | None, Callable[[float], bool], str], ...] = (
            ("--temp", self.temperature, lambda v: v >= 0, "0 (greedy) or more"),
            ("--top-p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1"),
            ("--top-k", self.top_k, lambda v: v >= 0, "0 (off) or more"),
            ("--min-p", self.min_p, lambda v: 0 <= v < 1, "at least 0 (off) and below 1"),
            (
                "--repetition-penalty",
                self.repetition_penalty,
                lambda v: v > 0,
                "above 0 (1 is off)",
            ),
        )
        for name, value, is_allowed, allowed in checks:
            if value is not None and not is_allowed(value):
                raise UsageError(f"{name} {value:g} is not allowed; it must be {allowed}")
