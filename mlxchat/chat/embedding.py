"""From texts to vectors, and from a question to the passages that are nearest to it.

Knows the prefixes that a model wants before its texts, cuts texts that are too long for it, and
measures what shorter vectors lose. Everything runs in one job on the worker thread; arrays pass
through untouched, since they are the engine's.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxchat.chat.passages import Passage, Split, cut_text
from mlxchat.chat.results import LoadProgress, PrefillProgress
from mlxchat.counts import format_count
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.engine.vectors import Metric, TruncationLoss, Vectors
    from mlxchat.engine.worker import JobContext
    from mlxchat.model.embedder import Embedder
    from mlxchat.model.embedding_files import Pooling
    from mlxchat.model.hub import ModelFolder
    from mlxchat.model.tokenizer import Tokenizer

_E5 = re.compile(r"(^|[/_-])e5[_-]", re.IGNORECASE)
# Longer passages hold several thoughts, of which one vector is a blur.
PASSAGE_TOKENS = 200


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How vectors are wanted; None follows the model.

    Attributes:
        pooling: How tokens become one vector.
        layer: After how many blocks the hidden states are taken.
        normalize: Whether vectors get length 1.
        dims: How many dimensions are kept.
        metric: What likeness is.
        split: What a passage of a file is; None: the file, or its paragraphs where one asks.
        passage_tokens: A paragraph with more is cut.
        prefix: Text before every text.
        query: A question to rank the passages for.
        query_prefix: Text before the question.
        top: How many passages are shown for the question.
        num_rows: How many vectors are wanted as numbers; None is all.
    """

    pooling: "Pooling | None" = None
    layer: int | None = None
    normalize: bool | None = None
    dims: int | None = None
    metric: "Metric" = "cosine"
    split: Split | None = None
    passage_tokens: int = PASSAGE_TOKENS
    prefix: str | None = None
    query: str | None = None
    query_prefix: str | None = None
    top: int = 5
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, with its score."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors and what was done to get them.

    Attributes:
        model: The model's name.
        passages: What the vectors are of, in order.
        num_tokens: Tokens that were read of each.
        vectors: (N, dims); the engine's.
        rows: The same as numbers, as many as were wanted; the question's alone where there is one.
        likeness: How like each is to each, (N, N); empty where there is a question or one text.
        dims: Numbers in a vector.
        whole_dims: Numbers before it was cut.
        pooling: How tokens became one vector.
        layer: After how many blocks; None for the model's end.
        n_layers: Blocks of the model.
        normalized: Whether vectors have length 1.
        metric: What likeness is.
        loss: What cutting the vectors loses, where it was measured.
        hits: The passages nearest to the question, the best first.
        query: The question.
        notices: What a person should know.
    """

    model: str
    passages: tuple[Passage, ...]
    num_tokens: tuple[int, ...]
    vectors: "Vectors"
    rows: list[list[float]]
    likeness: list[list[float]]
    dims: int
    whole_dims: int
    pooling: str
    layer: int | None
    n_layers: int
    normalized: bool
    metric: "Metric"
    loss: "TruncationLoss | None" = None
    hits: tuple[Hit, ...] = ()
    query: str | None = None
    notices: tuple[str, ...] = ()


# With more texts nobody reads the table of all pairs.
MOST_COMPARED = 200


def embed(
    name: str | None,
    passages: Sequence[Passage],
    options: EmbedOptions,
    context: "JobContext",
    *,
    adapter: str | None = None,
) -> Embedded:
    """Loads a model and embeds texts; on the worker thread.

    Args:
        name: A folder, a Hub id, or None for the built-in model.
        passages: Texts, and whole files that are still to be cut.
        options: How.
        context: The job's; gets `LoadProgress` and `PrefillProgress`.
        adapter: A folder that changes the model's weights.

    Raises:
        UsageError: An option does not suit the model, or there is nothing to embed.
        BackendError: MLX is missing.
    """
    folder, embedder = _load(name, adapter, context)
    from mlxchat.engine import vectors as v

    hints = _hint_at_prefixes(folder.name, embedder, options)
    shown, more_hints = _name_model(folder, embedder)
    options = _follow_model(embedder, options)
    pieces = list(_cut(passages, options, embedder))
    if not pieces:
        raise UsageError("there is no text in what was named; name a text or a file with some")
    read, are_cut = _encode_all(embedder, pieces, options)
    whole = _read(embedder, read, options, context)
    width = whole.shape[1]
    dims = _check_dims(options.dims, width)
    made = v.normalize(whole[:, :dims]) if options.normalize else whole[:, :dims]
    loss = v.measure_truncation(whole[: len(pieces)], dims) if dims < width else None
    made, asked = made[: len(pieces)], made[len(pieces) :]
    hits, likeness = _compare(pieces, made, asked, options)
    assert options.pooling is not None
    return Embedded(
        model=shown,
        passages=tuple(pieces),
        num_tokens=tuple(len(ids) for ids in read[: len(pieces)]),
        vectors=made,
        rows=v.to_lists(made[: options.num_rows] if options.query is None else asked),
        likeness=likeness,
        dims=dims,
        whole_dims=width,
        pooling=options.pooling,
        layer=options.layer,
        n_layers=embedder.n_layers,
        normalized=bool(options.normalize),
        metric=options.metric,
        loss=loss,
        hits=hits,
        query=options.query,
        notices=(*hints, *more_hints, *_notices(embedder, are_cut, dims, width, loss)),
    )


def _name_model(folder: "ModelFolder", embedder: "Embedder") -> tuple[str, list[str]]:
    """Returns the model's name with its adapter's, and what is to be said of the adapter."""
    if embedder.adapter is None:
        return folder.name, []
    from mlxchat.chat.loading import adapter_notices

    notices = adapter_notices(embedder.adapter, folder)
    return folder.name_with(embedder.adapter.name), list(notices)


def _load(
    name: str | None, adapter: str | None, context: "JobContext"
) -> "tuple[ModelFolder, Embedder]":
    """Finds, fetches and loads the model, MLX before it."""
    from mlxchat.model.device import load_mlx

    load_mlx()
    from mlxchat.model.embedder import load_embedder
    from mlxchat.model.hub import resolve_model

    folder = resolve_model(
        name,
        on_progress=lambda done, total: context.progress(LoadProgress("download", done, total)),
        check_cancel=context.check,
    )
    return folder, load_embedder(
        folder.path,
        lambda _, done, total: context.progress(LoadProgress("load", done, total)),
        adapter=adapter,
    )


def _read(
    embedder: "Embedder", ids: list[list[int]], options: EmbedOptions, context: "JobContext"
) -> "Vectors":
    """Returns one whole vector for each text."""
    from mlxchat.engine.vectors import embed_ids

    assert options.pooling is not None
    return embed_ids(
        embedder,
        ids,
        pooling=options.pooling,
        layer=options.layer,
        on_progress=lambda done, total: context.emit(PrefillProgress(done, total)),
        check=context.check,
    )


def _compare(
    pieces: list[Passage], made: "Vectors", asked: "Vectors", options: EmbedOptions
) -> tuple[tuple[Hit, ...], list[list[float]]]:
    """Returns the passages nearest to the question; without one, how like each is to each."""
    from mlxchat.engine import vectors as v

    if options.query is not None:
        order, scores = v.rank(asked[0], made, options.metric)
        best = zip(order[: options.top], scores, strict=False)
        return tuple(Hit(pieces[i], score) for i, score in best), []
    if 1 < len(pieces) <= MOST_COMPARED:
        return (), v.to_lists(v.similarity(made, made, options.metric))
    return (), []


def _follow_model(embedder: "Embedder", options: EmbedOptions) -> EmbedOptions:
    """Fills in what the model asks for where nothing was asked."""
    files, pooling = embedder.files, options.pooling or embedder.pooling
    if pooling is None:
        raise UsageError(
            f"this model pools with {files.other_pooling}, which is not known here; choose with"
            " --pooling mean, last, first, max or mean+max"
        )
    if options.layer is not None and not 0 <= options.layer <= embedder.n_layers:
        raise UsageError(
            f"--layer {options.layer} is not allowed; this model has 0 (the embedding rows) to"
            f" {embedder.n_layers}"
        )
    return replace(
        options,
        pooling=pooling,
        normalize=files.normalize if options.normalize is None else options.normalize,
        prefix=files.prefix if options.prefix is None else options.prefix,
        query_prefix=files.query_prefix if options.query_prefix is None else options.query_prefix,
    )


def _hint_at_prefixes(name: str, embedder: "Embedder", options: EmbedOptions) -> list[str]:
    """Returns a hint for models that want prefixes which stand only in their descriptions."""
    knows = embedder.files.prefix or embedder.files.query_prefix
    if not _E5.search(name) or knows or (options.prefix, options.query_prefix) != (None, None):
        return []
    return [
        "e5 models were trained with 'query: ' before questions and 'passage: ' before texts, which"
        " this one's files do not say; give --query-prefix and --prefix"
    ]


def _cut(
    passages: Sequence[Passage], options: EmbedOptions, embedder: "Embedder"
) -> "list[Passage]":
    split: Split = options.split or ("file" if options.query is None else "paragraph")
    most = min(options.passage_tokens, embedder.max_tokens - 8)
    pieces: list[Passage] = []
    for passage in passages:
        if passage.path is None:
            pieces.append(passage)
        else:
            count = _counter(embedder.tokenizer)
            pieces += cut_text(passage.text, passage.path, split, count, max(most, 1))
    return [piece for piece in pieces if piece.text.strip()]


def _counter(tokenizer: "Tokenizer") -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text))


def _encode_all(
    embedder: "Embedder", pieces: Sequence[Passage], options: EmbedOptions
) -> tuple[list[list[int]], list[bool]]:
    """Returns the ids of all pieces, then of the query if any; and of each piece if it was cut."""
    encoded = [_encode(embedder, (options.prefix or "") + piece.text) for piece in pieces]
    ids = [ids for ids, _ in encoded]
    if options.query is not None:
        ids.append(_encode(embedder, (options.query_prefix or "") + options.query)[0])
    return ids, [is_cut for _, is_cut in encoded]


def _encode(embedder: "Embedder", text: str) -> tuple[list[int], bool]:
    """Returns the ids of a text, cut to what the model reads, and whether they were cut.

    What the tokenizer puts around a text ([CLS] and [SEP], an end token) stays.
    """
    tokenizer, most = embedder.tokenizer, embedder.max_tokens
    whole = tokenizer.encode(text, add_special_tokens=True)
    if len(whole) <= most:
        # An empty text of a tokenizer that puts nothing around it still needs a token.
        return whole or tokenizer.encode(" ") or [0], False
    plain = tokenizer.encode(text)
    num_around = len(whole) - len(plain)
    before = next((i for i in range(num_around + 1) if whole[i : i + len(plain)] == plain), 0)
    after = whole[before + len(plain) :]
    return [*whole[:before], *plain[: max(most - before - len(after), 0)], *after], True


def _check_dims(dims: int | None, width: int) -> int:
    if dims is not None and not 1 <= dims <= width:
        raise UsageError(f"--dims {dims} is not allowed; these vectors have 1 to {width}")
    return dims or width


def _notices(
    embedder: "Embedder",
    is_cut: Sequence[bool],
    dims: int,
    width: int,
    loss: "TruncationLoss | None",
) -> list[str]:
    lines = []
    if num_cut := sum(is_cut):
        most = format_count(embedder.max_tokens)
        lines.append(
            f"{num_cut} of {len(is_cut)} texts were cut to {most} tokens,"
            " the most that this model reads; --split paragraph embeds files in pieces"
        )
    if dims == width:
        return lines
    trained = embedder.files.trained_dims
    if trained is not None and dims in trained:
        return lines
    said = "nothing in its files says" if trained is None else f"only {list(trained)} are said"
    lines.append(f"{dims} of {width} dimensions: {said} that it was trained for it; {_tell(loss)}")
    return lines


def _tell(loss: "TruncationLoss | None") -> str:
    if loss is None:
        return "with three or more texts the loss can be measured"
    nearest, others = 100 * (1 - loss.nearest_kept), 100 * (1 - loss.neighbours_kept)
    return (
        f"of {loss.num_texts} texts, {nearest:.0f} % lose their nearest neighbour and {others:.0f}"
        f" % of the {loss.k} nearest change (cosine, whole vectors against cut ones)"
    )


def save(done: Embedded, file: Path) -> None:
    """Writes the vectors of all passages to a file; on the worker thread.

    Args:
        done: The vectors.
        file: Its ending says how: `.npy` the numbers alone, `.jsonl` one object per passage with
            its text and place, `.json` the list of vectors.
    """
    from mlxchat.engine import vectors as v

    if file.suffix == ".npy":
        v.save_npy(str(file), done.vectors)
        return
    rows = v.to_lists(done.vectors)
    with file.open("w", encoding="utf-8") as stream:
        if file.suffix == ".json":
            facts = {"vectors": rows, "dims": done.dims, "pooling": done.pooling}
            stream.write(json.dumps(facts) + "\n")
            return
        for passage, row in zip(done.passages, rows, strict=True):
            place = {} if passage.path is None else {"path": passage.path}
            lines = {} if passage.path is None else {"line": passage.first_line}
            line = {"text": passage.text, **place, **lines, "vector": row}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
