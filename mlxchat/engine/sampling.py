"""How the next token is drawn (stand-in: take main's file on merge)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling options; None means the model's generation_config.json, else our default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
