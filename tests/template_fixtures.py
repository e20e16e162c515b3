"""What the template tests share: real templates where they are at hand, stand-in tokenizers.

The real templates are third-party data that lies beside the repository, never in it.
"""

import csv
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from small_templates import SMALL_TEMPLATES
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mlxchat.model.tokenizer import Tokenizer

SHARED = Path(
    os.environ.get("MLXCHAT_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")
)
FOLDER = SHARED / "templates"
SKIP_REASON = f"the real templates are not at {FOLDER} (MLXCHAT_SHARED names their parent)"
_MARKERS = re.compile(
    r"<[|｜][^<>{}\s'\"]{1,40}?[|｜]>|</?think>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>"
    r"|</?seed:[a-z_]+>|<\|channel>|<channel\|>|<\|turn>|<turn\|>"
)
_SMALL_STOPS = {"exact": "<|im_end|>", "inserted-blank": "</s>", "think-kept": "<|end|>"}


@dataclass(frozen=True)
class Example:
    """A template with what is known of its model."""

    name: str
    source: str
    bos: str | None = "<s>"
    stops: tuple[str, ...] = ("</s>",)
    extra: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def thinks(self) -> bool:
        """Whether the model behind the template thinks before it answers."""
        if self.facts:
            return self.facts["think_markers"] != "-"
        return self.name.startswith(("think", "harmony"))


@cache
def examples() -> tuple[Example, ...]:
    """Our small templates and, where they are at hand, the real ones."""
    small = [
        Example(name, source, stops=(_SMALL_STOPS.get(name, "<|im_end|>"), "</s>"))
        for name, source in SMALL_TEMPLATES.items()
    ]
    return (*small, *real_examples())


@cache
def real_examples() -> tuple[Example, ...]:
    """The real templates; empty where the folder is absent."""
    index = FOLDER / "INDEX.tsv"
    if not index.is_file():
        return ()
    lines = [line for line in index.read_text("utf-8").splitlines() if not line.startswith("#")]
    return tuple(
        Example(
            row["file"],
            (FOLDER / row["file"]).read_text("utf-8"),
            None if row["bos"] == "-" else row["bos"].split(" ")[0],
            tuple(row["eos_eot"].split(";")[0].split(", ")),
            tuple(set(row["extra_special_tokens"].split(",")) - {"-", ""}),
            dict(row),
        )
        for row in csv.DictReader(lines, delimiter="\t")
    )


@cache
def _byte_level_state() -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        "Hello there, how are you today? What is the answer to this question about things?",
        "The user asks and the assistant thinks; then it answers: well, let me see. 1 2 3",
        "user\nassistant\nsystem\nYou are a helpful assistant named Bob.\n\nToday Date: model",
        "Grüße aus Köln, 你好世界 🙂 and\n\nnew lines\n    indented\tcode() = {'a': [1, 2]}",
    ]
    backend.train_from_iterator(texts + list(SMALL_TEMPLATES.values()), trainer)
    return backend.to_str()


def special_tokens_of(example: Example) -> list[AddedToken]:
    """Every control token that the template spells or the model stops on."""
    names = {*_MARKERS.findall(example.source), *example.stops, *example.extra}
    names |= {example.bos} if example.bos else set()
    return [AddedToken(name, special=True, normalized=False) for name in sorted(names)]


def stand_in(example: Example, backend: Backend | None = None) -> Tokenizer:
    """A small tokenizer with the control tokens of a template."""
    backend = backend or Backend.from_str(_byte_level_state())
    backend.add_tokens(special_tokens_of(example))
    special = {"bos_token": example.bos} if example.bos else {}
    return Tokenizer(
        backend,
        special_tokens=special | {"eos_token": example.stops[0]},
        eos_ids=[backend.token_to_id(stop) for stop in example.stops],
        chat_templates={"default": example.source},
    )
