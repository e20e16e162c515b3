"""How a model wants to be used for vectors, as the files beside its weights say.

Knows the layout of sentence-transformers: `modules.json` lists the steps after the transformer,
`1_Pooling/config.json` says how tokens become one vector, `config_sentence_transformers.json` holds
the texts to put before queries and documents, `sentence_bert_config.json` the longest text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.checkpoint import read_json_object

Pooling = Literal["mean", "last", "first", "max", "mean+max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

# The switches of 1_Pooling/config.json, and the names that newer versions write instead.
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NAMES: Mapping[str, Pooling] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
_KNOWN_STEPS = ("Transformer", "Pooling", "Normalize")
# Under these names models keep the text before a question and the one before what answers it.
_QUERY_PROMPTS = ("query", "s2p_query", "retrieval.query", "search_query")
_DOCUMENT_PROMPTS = ("document", "passage", "retrieval.passage", "search_document", "corpus")


@dataclass(frozen=True, slots=True)
class EmbeddingFiles:
    """What the files of a model say about its vectors.

    Attributes:
        pooling: How tokens become one vector; None where nothing is said.
        other_pooling: A way that is asked for, but not known here.
        normalize: Whether vectors get length 1.
        max_tokens: The longest text, or None.
        query_prefix: Text before a question.
        prefix: Text before everything else.
        trained_dims: Shorter lengths that it was trained for (Matryoshka, Kusupati et al. 2022);
            None where nothing is said.
    """

    pooling: Pooling | None = None
    other_pooling: str | None = None
    normalize: bool = True
    max_tokens: int | None = None
    query_prefix: str = ""
    prefix: str = ""
    trained_dims: tuple[int, ...] | None = None


def read_embedding_files(folder: Path, config: Mapping[str, Any]) -> EmbeddingFiles:
    """Reads what a model folder says about its vectors.

    Args:
        folder: The model folder.
        config: The content of config.json.

    Raises:
        CheckpointError: A file is broken.
        UnsupportedModelError: The model has a step after pooling that is not known here.
    """
    steps = _read_steps(folder)
    pooling, other = _read_pooling(folder, steps)
    about = _read(folder / "config_sentence_transformers.json")
    prompts = {
        name: text
        for name, text in (about.get("prompts") or {}).items()
        if isinstance(name, str) and isinstance(text, str)
    }
    default = prompts.get(str(about.get("default_prompt_name")), "")
    longest = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    return EmbeddingFiles(
        pooling=pooling,
        other_pooling=other,
        normalize=not steps or "Normalize" in steps,
        max_tokens=longest if isinstance(longest, int) and longest > 2 else None,
        query_prefix=_first(prompts, _QUERY_PROMPTS, default),
        prefix=_first(prompts, _DOCUMENT_PROMPTS, default),
        trained_dims=_trained_dims(config, about),
    )


def _first(prompts: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((prompts[name] for name in names if name in prompts), default)


def _read_steps(folder: Path) -> dict[str, str]:
    """Returns the folder of each step by the step's kind, in order."""
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    steps = {}
    for step in read_json_object(file, list):
        kind = str(step.get("type") if isinstance(step, Mapping) else step).rpartition(".")[2]
        if kind not in _KNOWN_STEPS:
            raise UnsupportedModelError(
                f"this model ends its vectors with a {kind} step, which is not known here;"
                f" models of {', '.join(_KNOWN_STEPS)} are"
            )
        steps[kind] = str(step.get("path", ""))
    return steps


def _read_pooling(folder: Path, steps: Mapping[str, str]) -> tuple[Pooling | None, str | None]:
    place = steps.get("Pooling", "1_Pooling")
    # A path in the list could lead out of the folder.
    says = _read(folder / Path(place).name / "config.json")
    named = says.get("pooling_mode")
    names = named if isinstance(named, list) else [] if named is None else [named]
    modes = [_NAMES.get(str(name), str(name)) for name in names]
    modes += [
        _MODES.get(key, key.removeprefix("pooling_mode_"))
        for key, is_on in says.items()
        if key.startswith("pooling_mode_") and is_on is True
    ]
    if len(modes) == 1 and modes[0] in POOLINGS:
        return modes[0], None
    return None, "+".join(modes) or None


def _trained_dims(config: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[int, ...] | None:
    for source in (config, about):
        for key in ("matryoshka_dimensions", "matryoshka_dims"):
            if isinstance(dims := source.get(key), list):
                return tuple(n for n in dims if isinstance(n, int))
    return None


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json_object(file) if file.is_file() else {}
    return found
