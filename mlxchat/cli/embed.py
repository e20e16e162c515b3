"""`mlxchat embed`: texts and files to vectors, and the passages nearest to a question."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.choices import choose_adapter
from mlxchat.cli.files import find_files, is_pattern
from mlxchat.cli.generate import read_stdin
from mlxchat.cli.options import ADAPTER_OPTION, MODEL_OPTION, resolve_model
from mlxchat.cli.page import HTML_OPTION, check_folder, write_page
from mlxchat.cli.render import one_line
from mlxchat.errors import UsageError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from mlxchat.chat.embedding import Embedded, EmbedOptions
    from mlxchat.chat.passages import Passage
    from mlxchat.engine.worker import JobContext

MAX_BYTES = 64 << 20  # far more than a person waits for
MOST_SHOWN = 40
_POOLINGS = ("mean", "last", "first", "max", "mean+max")
_METRICS = ("cosine", "l2", "dot")
_SPLITS = ("file", "paragraph", "line")
# So end the names of files that are embedded; hardly a text does.
_TEXT_FILES = (".txt", ".md", ".rst", ".html", ".py", ".json", ".jsonl", ".csv")
_FORMATS = (".npy", ".jsonl", ".json")


@click.command()
@click.argument("text", nargs=-1, metavar="[TEXT|FILE]...")
@MODEL_OPTION
@ADAPTER_OPTION
@click.option("--pooling", type=click.Choice(_POOLINGS), help="How tokens become one vector.")
@click.option("--layer", type=int, metavar="N", help="Hidden states after N blocks; 0: the input.")
@click.option(
    "--normalize/--no-normalize", default=None, help="Bring vectors to length 1, or leave them."
)
@click.option("--dims", type=int, metavar="N", help="Keep the first N dimensions (Matryoshka).")
@click.option("--metric", type=click.Choice(_METRICS), help="How vectors are compared.")
@click.option("--query", metavar="TEXT", help="Rank the passages of the files for this question.")
@click.option("--top", type=click.IntRange(1), default=5, metavar="N", help="Show the N best.")
@click.option("--split", type=click.Choice(_SPLITS), help="What of a file gets a vector.")
@click.option(
    "--passage-tokens",
    type=click.IntRange(8),
    metavar="N",
    help="Cut paragraphs of more than N tokens.",
)
@click.option("--prefix", metavar="TEXT", help="Put this before every text.")
@click.option("--query-prefix", metavar="TEXT", help="Put this before the question.")
@click.option("-o", "--out", metavar="FILE", help="Write the vectors: .npy, .jsonl or .json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@HTML_OPTION
def embed(
    text: tuple[str, ...],
    model: str | None,
    adapter: str | None,
    out: str | None,
    as_json: bool,
    html: str | None,
    **params: Any,
) -> None:
    """Turn texts and files into vectors, or rank passages for a question.

    Each TEXT and each FILE gets one vector; patterns such as 'docs/*.md' name many files, and lines
    on stdin are texts. With --query the files are cut into paragraphs, and the nearest are shown
    with their place. Pooling, length and prefixes are those that the model's files ask for. Works
    with encoders of the BERT family, with decoder embedders and with any native chat model.
    """
    from mlxchat.chat.embedding import EmbedOptions

    given = {name: value for name, value in params.items() if value is not None}
    if not str(params.get("query") or "x").strip():
        raise UsageError("--query is empty; give a question")
    _check_out(out)
    passages = _read_texts(text)
    if not passages:
        raise UsageError("there is no text; give a text, a file, or lines on stdin")
    # Of a large corpus only the file has room for all numbers.
    options = EmbedOptions(**given, num_rows=None if as_json else MOST_SHOWN)
    settings = load_settings()
    name = resolve_model(model, settings)
    done = _run(name, choose_adapter(settings, name, adapter), passages, options, out)
    for notice in done.notices:
        click.echo(notice, err=True)
    if html is not None:
        from mlxchat.cli.render_embed import make_page

        write_page(html, make_page(done))
    if as_json:
        click.echo(json.dumps(to_json(done, with_likeness=params["metric"] is not None)))
    elif out is None or done.hits:
        from mlxchat.cli.render_embed import show

        show(done)
    if out is not None and not as_json:
        click.echo(f"{out}: {len(done.passages)} vectors of {done.dims} dimensions", err=True)


def _read_texts(arguments: tuple[str, ...]) -> "list[Passage]":
    """Returns what the arguments name: files whole, everything else as it is; or stdin's lines."""
    from mlxchat.chat.passages import Passage

    passages: list[Passage] = []
    room = MAX_BYTES
    for argument in arguments:
        if not _names_files(argument):
            _refuse_missing(argument)
            passages.append(Passage(argument))
            continue
        found = find_files(argument, room)
        for notice in found.notices:
            click.echo(notice, err=True)
        room -= sum(file.size for file in found.files)
        passages += [Passage(file.text, file.name) for file in found.files]
    if not arguments:
        lines = read_stdin().split("\n")
        passages = [Passage(line.strip()) for line in lines if line.strip()]
    return passages


def _refuse_missing(argument: str) -> None:
    """Raises where a text is written as only a file's name is: it was mistyped."""
    is_name = argument.startswith(("/", "./", "../", "~/")) or argument.endswith(_TEXT_FILES)
    if is_name and not any(c.isspace() for c in argument):
        raise UsageError(
            f"there is no file {one_line(argument)}; correct the name, or give the text on stdin"
        )


def _names_files(argument: str) -> bool:
    """Whether an argument is a file that exists, or a pattern (without blanks); else it is text."""
    if is_pattern(argument):
        return any(c in argument for c in "*[") and not any(c.isspace() for c in argument)
    try:
        return Path(argument).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or a home that is unknown
        return False


def _check_out(out: str | None) -> None:
    if out is not None and Path(out).suffix not in _FORMATS:
        raise UsageError(f"--out {out} has no known ending; {', '.join(_FORMATS)} are allowed")
    check_folder(out)


def _run(
    name: str | None,
    adapter: str | None,
    passages: "list[Passage]",
    options: "EmbedOptions",
    out: str | None,
) -> "Embedded":
    from mlxchat.chat.embedding import embed as embed_texts
    from mlxchat.chat.embedding import save
    from mlxchat.cli.progress import run_job

    def work(context: "JobContext") -> "Embedded":
        done = embed_texts(name, passages, options, context, adapter=adapter)
        if out is not None:
            save(done, Path(out).expanduser())
        return done

    return run_job(work)


def to_json(done: "Embedded", *, with_likeness: bool) -> dict[str, Any]:
    """Returns what `--json` prints.

    Args:
        done: The vectors.
        with_likeness: Also how like each text is to each.
    """
    facts: dict[str, Any] = {
        "vectors": done.rows,
        "dims": done.dims,
        "pooling": done.pooling,
    }
    if done.loss is not None:
        facts["truncation"] = {
            "whole_dims": done.whole_dims,
            "num_texts": done.loss.num_texts,
            "k": done.loss.k,
            "nearest_kept": done.loss.nearest_kept,
            "neighbours_kept": done.loss.neighbours_kept,
        }
    if done.query is not None:
        facts |= {"query": done.query, "metric": done.metric}
        facts["results"] = [
            {
                "score": hit.score,
                "path": hit.passage.path,
                "line": hit.passage.first_line,
                "last_line": hit.passage.last_line,
                "text": hit.passage.text,
            }
            for hit in done.hits
        ]
    elif with_likeness:
        facts |= {"metric": done.metric, "similarity": done.likeness}
    return facts
