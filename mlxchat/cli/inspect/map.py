"""`mlxchat inspect map`: hidden states of words on a plane, layer by layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.lens.plane import LayerPlane

_MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Words:
    """What is mapped.

    Attributes:
        names: The words.
        places: Their coordinates, where they are given.
        labels: Their labels, where they are given.
    """

    names: list[str]
    places: list[tuple[float, float]] | None = None
    labels: list[str] | None = None

    @property
    def kinds(self) -> list[str]:
        """The labels, each once, in order."""
        return list(dict.fromkeys(self.labels or []))

    @property
    def groups(self) -> list[int]:
        """The number of each word's label."""
        return [self.kinds.index(label) for label in self.labels or []]


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORDS|FILE...")
@click.option("--layer", type=int, metavar="N", help="Draw N blocks' plane; 0 is the embedding.")
@click.option(
    "--template", metavar="TEXT", default="{}", help="A text around each word, such as 'a {} is'."
)
@look_options()
def map(  # the command's name
    words: tuple[str, ...],
    layer: int | None,
    template: str,
    model: str | None,
    adapter: str | None,
    **out: Any,
) -> None:
    """Project the hidden states of words to a plane, layer by layer.

    In a FILE each line is a word, alone or with what is known of it after a tab: a label, or two
    numbers. Words alone are drawn by their principal components. With labels or numbers the best
    linear map onto them is found, and told how well it does on words held out: does the model know?
    """
    known = read_words(words)
    if "{}" not in template:
        raise UsageError("--template has no {} for the word; write one, such as 'a {} is'")

    def work(subject: Subject) -> "tuple[list[LayerPlane], str]":
        return map_words(subject, known, template), subject.name

    planes, name = look(model, adapter, work)
    chosen = choose_layer(planes, layer)
    from mlxchat.cli.inspect import render_map

    show(
        to_json(planes, known, chosen),
        lambda console: render_map.make_view(planes, known, chosen, name, console.width),
        lambda: render_map.make_page(planes, known, chosen, name),
        **out,
    )


def map_words(subject: Subject, known: Words, template: str) -> "list[LayerPlane]":
    """Returns the planes of all layers; on the worker thread."""
    from mlxchat.cli.words import find_word
    from mlxchat.lens.plane import map_layers

    texts = []
    for name in known.names:
        ids = subject.encode(template.replace("{}", name))
        texts.append((ids, find_word(subject.tokenizer, ids, name)[-1]))
    groups = known.groups if known.labels else None
    return map_layers(subject.model, texts, known.places, groups, check=subject.check)


def choose_layer(planes: "list[LayerPlane]", layer: int | None) -> int:
    """Returns the layer to draw: the one asked for, the best one, or the last.

    Raises:
        UsageError: There is no such layer.
    """
    if layer is not None:
        if not 0 <= layer < len(planes):
            raise UsageError(f"--layer {layer} is not allowed; there are 0 to {len(planes) - 1}")
        return layer
    if planes[0].score is None:
        return len(planes) - 1
    return max(range(len(planes)), key=lambda n: planes[n].score or 0.0)


def read_words(arguments: tuple[str, ...]) -> Words:
    """Reads the words: the arguments themselves, or the lines of one file.

    Raises:
        UsageError: A line is no word, or lines differ in what is known.
        AttachError: The file cannot be read.
    """
    from mlxchat.cli.files import exists, find_files

    if len(arguments) > 1 or not exists(arguments[0]):
        names = [word for argument in arguments for word in argument.split(",") if word.strip()]
        return Words(_unique([name.strip() for name in names]))
    file = arguments[0]
    lines = find_files(file, _MAX_BYTES).files[0].text.split("\n")
    rows = [line.rstrip().split("\t") for line in lines if line.strip()]
    widths = {len(row) for row in rows}
    if not rows or len(widths) > 1 or not widths <= {1, 2, 3}:
        raise UsageError(
            f"{file} makes no map; write a word on each line, and after a tab a label or, after two"
            " tabs, two numbers; the same on every line"
        )
    names = _unique([row[0].strip() for row in rows])
    if widths == {3}:
        return Words(names, places=[_read_place(file, row) for row in rows])
    return Words(names, labels=[row[1].strip() for row in rows] if widths == {2} else None)


def _read_place(file: str, row: list[str]) -> tuple[float, float]:
    try:
        return float(row[1]), float(row[2])
    except ValueError:
        raise UsageError(f"{file} has {row[0]!r} without two numbers; correct that line") from None


def _unique(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{twice!r} is there twice; name each word once")
    return names


def to_json(planes: "list[LayerPlane]", known: Words, chosen: int) -> Json:
    """Returns what `--json` prints."""
    facts: Json = {
        "words": known.names,
        "kind": "coordinates" if known.places else "labels" if known.labels else "components",
        "best_layer" if planes[0].score is not None else "shown_layer": chosen,
        "layers": [
            {
                "layer": one.layer,
                "points": [list(point) for point in one.points],
                "explained": None if one.explained is None else list(one.explained),
                "held_out": one.score,
            }
            for one in planes
        ],
    }
    if known.labels:
        facts["labels"] = known.labels
    if known.places:
        facts["coordinates"] = [list(place) for place in known.places]
    return facts
