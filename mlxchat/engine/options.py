"""What a person may set about sampling. Free of MLX, so that the command line can use it."""

from dataclasses import dataclass


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
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
