"""`mlxchat inspect steer`: make steering vectors, look at them, and try them."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.groups import Group
from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show
from mlxchat.cli.page import HTML_OPTION
from mlxchat.errors import MlxchatError, UsageError

if TYPE_CHECKING:
    from mlxchat.lens.steering import SteeringVector
    from mlxchat.lens.steering_file import SteeringInfo

# What a vector is tried at where nobody says.
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
_raw = click.option("--raw", is_flag=True, help="Take prompts as they are, not as messages.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=Group)
def steer() -> None:
    """Make and try steering vectors.

    A vector is made from pairs of prompts: what the model holds at their last tokens differs by a
    direction, layer by layer. Added to what the model holds while it answers, the direction changes
    how it answers: mlxchat --steer NAME:1, or /steer NAME 1 in the chat.
    """


@steer.command()
@click.argument("name")
@click.option("--positive", metavar="FILE", required=True, help="Prompts to steer to.")
@click.option("--negative", metavar="FILE", required=True, help="Prompts to steer away from.")
@click.option("--layer", type=int, metavar="N", help="Add it after block N, not the best.")
@_raw
@look_options()
def make(
    name: str,
    positive: str,
    negative: str,
    layer: int | None,
    raw: bool,
    model: str | None,
    adapter: str | None,
    **out: Any,
) -> None:
    """Make the vector NAME from pairs of prompts, measure it and store it.

    Each line of a file is a prompt; line by line the files pair. In a .jsonl file each line is a
    text or a list of messages, so that pairs can differ by their system prompt.
    """
    from mlxchat.cli.inspect.prompts import Prompt, read_prompts
    from mlxchat.lens.steering_file import check_name, find_vector, save_vector

    check_name(name)
    pairs = [read_prompts(positive), read_prompts(negative)]
    if len(pairs[0]) != len(pairs[1]):
        raise UsageError(
            f"{positive} has {len(pairs[0])} prompts and {negative} has {len(pairs[1])}; they are"
            " paired line by line, so give as many of each"
        )

    def work(subject: Subject) -> None:
        from mlxchat.lens.steering import make_vector

        def encode(prompts: list[Prompt]) -> list[list[int]]:
            return [prompt.encode(subject, raw=raw) for prompt in prompts]

        vector = make_vector(
            subject.model,
            encode(pairs[0]),
            encode(pairs[1]),
            layer=layer,
            on_progress=subject.report,
            check=subject.check,
        )
        save_vector(
            vector,
            name=name,
            model=subject.name,
            fingerprint=subject.fingerprint,
            positive=[prompt.shown for prompt in pairs[0]],
            negative=[prompt.shown for prompt in pairs[1]],
        )

    look(model, adapter, work)
    _show_vector(find_vector(name), **out)


@steer.command("list")
@_json
def list_(as_json: bool) -> None:
    """List the stored vectors."""
    from mlxchat.lens.steering_file import list_vectors

    infos = list_vectors()
    if as_json:
        click.echo(json.dumps({"vectors": [to_json(info) for info in infos]}))
    elif not infos:
        click.echo("there are no steering vectors; make one with mlxchat inspect steer make")
    else:
        from mlxchat.cli.inspect.paint import make_console
        from mlxchat.cli.inspect.render_steer import make_list

        make_console().print(make_list(infos))


@steer.command("show")
@click.argument("name")
@_json
@HTML_OPTION
def show_(name: str, **out: Any) -> None:
    """Show how the vector NAME was made and what was measured."""
    from mlxchat.lens.steering_file import find_vector

    _show_vector(find_vector(name), **out)


def _show_vector(info: "SteeringInfo", **out: Any) -> None:
    from mlxchat.cli.inspect import render_steer

    show(
        to_json(info),
        lambda console: render_steer.make_view(info),
        lambda: render_steer.make_page(info),
        **out,
    )


def to_json(info: "SteeringInfo") -> Json:
    """Returns what `--json` prints of a vector."""
    return {
        "name": info.name,
        "model": info.model,
        "layer": info.layer,
        "num_pairs": info.num_pairs,
        "held_out": info.held_out,
        "layers": [{"layer": n, **facts} for n, facts in enumerate(info.layers)],
        "sweep": info.sweep,
        "positive": info.positive,
        "negative": info.negative,
        "created": info.created,
        "path": str(info.path),
    }


@steer.command()
@click.argument("name")
@click.argument("prompt")
@click.option("--strength", type=float, multiple=True, metavar="X", help="Try X; may be repeated.")
@click.option("--layer", type=int, metavar="N", help="Add it after block N instead of its own.")
@click.option(
    "--method", type=click.Choice(["mean", "pca"]), default="mean", help="Which direction."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=40, metavar="N", help="Write at most N tokens."
)
@_raw
@look_options()
def apply(
    name: str,
    prompt: str,
    strength: tuple[float, ...],
    layer: int | None,
    method: str,
    max_tokens: int,
    raw: bool,
    model: str | None,
    adapter: str | None,
    **out: Any,
) -> None:
    """Answer PROMPT with the vector NAME at several strengths, side by side."""
    from mlxchat.cli.inspect.prompts import Prompt
    from mlxchat.lens.steering_file import find_vector, load_vector

    info = find_vector(name)
    strengths = strength or STRENGTHS
    if layer is not None and not 0 <= layer < info.num_layers:
        raise UsageError(f"--layer {layer} is not allowed; {name} has 0 to {info.num_layers - 1}")

    def work(subject: Subject) -> list[tuple[float, list[int], str]]:
        from mlxchat.lens.writing import write_tokens

        vector: SteeringVector = load_vector(info, subject.fingerprint, subject.name)
        ids, found = Prompt(prompt).encode(subject, raw=raw), []
        for coeff in strengths:
            written = write_tokens(
                subject.model,
                ids,
                max_tokens=max_tokens,
                eos_ids=subject.tokenizer.eos_ids,
                taps=vector.taps(coeff, layer, method),  # type: ignore[arg-type]  # click checked
                check=subject.check,
            )
            found.append((coeff, written, subject.tokenizer.decode(written)))
        return found

    results = look(model, adapter, work)
    from mlxchat.cli.inspect import render_steer

    at = info.layer if layer is None else layer
    show(
        {
            "name": name,
            "layer": at,
            "method": method,
            "prompt": prompt,
            "results": [{"coeff": c, "tokens": ids, "text": text} for c, ids, text in results],
        },
        lambda console: render_steer.make_answers(info, at, prompt, results),
        lambda: render_steer.make_answers_page(info, at, prompt, results),
        **out,
    )


@steer.command()
@click.argument("name")
@click.argument("file")
def export(name: str, file: str) -> None:
    """Write the vector NAME to FILE: .safetensors, or .json with its numbers."""
    from mlxchat.lens.steering_file import find_vector

    info, path = find_vector(name), Path(file).expanduser()
    if path.suffix not in (".safetensors", ".json"):
        raise UsageError(f"{file} has no known ending; .safetensors and .json are allowed")
    if not path.parent.is_dir():
        raise MlxchatError(f"there is no folder {path.parent}; make it first")
    if path.suffix == ".safetensors":
        shutil.copyfile(info.path, path)
    else:
        path.write_text(json.dumps(to_json(info) | _read_rows(info)), encoding="utf-8")
    click.echo(f"Wrote {file}.", err=True)


@steer.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the vector NAME for good."""
    from mlxchat.lens.steering_file import remove_vector

    remove_vector(name)
    click.echo(f"Removed {name}.", err=True)


def _read_rows(info: "SteeringInfo") -> Json:
    """Returns the directions as numbers, by layer."""
    from mlxchat.engine.worker import Worker

    def read(_: object) -> Json:
        from mlxchat.model.device import load_mlx

        arrays = load_mlx().load(str(info.path), format="safetensors")
        return {name: rows.tolist() for name, rows in arrays.items()}

    worker = Worker()
    try:
        return worker.run(read)
    finally:
        worker.close()
