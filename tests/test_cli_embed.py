"""`mlxchat embed` from the command line: texts, files, stdin, questions, every kind of output."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bert import write_encoder

from mlxchat.cli.main import cli

PROMPTS = {"prompts": {"query": "fast ", "document": "slow "}}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(write_encoder(tmp_path_factory.mktemp("encoder"), pooling=CLS, about=PROMPTS))


def run(*arguments, code=0, **more):
    done = CliRunner().invoke(cli, ["embed", *map(str, arguments)], **more)
    assert done.exit_code == code, done.output
    return done


def run_json(*arguments, **more):
    return json.loads(run(*arguments, "--json", **more).stdout)


def test_texts(encoder):
    """Each argument gets one vector of length 1, pooled as the model's files ask for."""
    done = run_json("-m", encoder, "the cat sat", "the dog runs")
    assert (done["dims"], done["pooling"], len(done["vectors"])) == (24, "first", 2)
    np.testing.assert_allclose(np.linalg.norm(done["vectors"], axis=1), 1, atol=1e-5)
    assert set(done) == {"vectors", "dims", "pooling"}


def test_prefixes(encoder):
    """The model's text for documents stands before each; `--prefix` takes its place."""
    given = run_json("-m", encoder, "cat")["vectors"]
    assert run_json("-m", encoder, "--prefix", "", "slow cat")["vectors"] == given
    assert run_json("-m", encoder, "--prefix", "", "cat")["vectors"] != given


def test_builtin_model_and_stdin():
    """Without arguments each line of stdin is a text; the built-in chat model gives vectors too."""
    done = run_json(input="Paris\n\nMadrid\n")
    assert (len(done["vectors"]), done["pooling"]) == (2, "mean")


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_likeness(encoder, metric):
    """`--metric` puts the table of all pairs into the JSON."""
    done = run_json("-m", encoder, "--no-normalize", "--metric", metric, "cat", "dog", "a tree")
    x = np.array(done["vectors"])
    expected = {
        "cosine": (x / np.linalg.norm(x, axis=1, keepdims=True)),
        "dot": x,
        "l2": None,
    }[metric]
    if expected is None:
        table = np.linalg.norm(x[:, None] - x[None], axis=-1)
    else:
        table = expected @ expected.T
    np.testing.assert_allclose(done["similarity"], table, atol=1e-4)


def test_poolings_layers_and_lengths(encoder):
    """`--pooling`, `--layer` and `--no-normalize` change what they say."""
    plain = np.array(run_json("-m", encoder, "--no-normalize", "the cat")["vectors"][0])
    unit = np.array(run_json("-m", encoder, "the cat")["vectors"][0])
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain), atol=1e-5)
    both = run_json("-m", encoder, "--pooling", "mean+max", "the cat")
    assert (both["dims"], both["pooling"]) == (48, "mean+max")
    first = run_json("-m", encoder, "--layer", "0", "the cat")
    assert not np.allclose(first["vectors"][0], unit, atol=1e-3)


def test_shorter_vectors(encoder):
    """`--dims` keeps the first dimensions, brings them to length 1 and tells what is lost."""
    texts = ["the cat sat", "a dog runs", "green tree", "blue sky", "the mat is green"]
    whole = np.array(run_json("-m", encoder, *texts)["vectors"])
    done = run("-m", encoder, "--dims", "6", "--json", *texts)
    short = json.loads(done.stdout)
    cut = whole[:, :6] / np.linalg.norm(whole[:, :6], axis=1, keepdims=True)
    np.testing.assert_allclose(short["vectors"], cut, atol=1e-5)
    loss = short["truncation"]
    assert (loss["whole_dims"], loss["num_texts"], loss["k"]) == (24, 5, 3)
    lost = round(100 * (1 - loss["nearest_kept"]))
    assert "6 of 24 dimensions: nothing in its files says that it was trained" in done.stderr
    assert f"{lost} % lose their nearest neighbour" in done.stderr


def test_trained_lengths_give_no_warning(tmp_path):
    """A length that the model says it was trained for is taken without a word."""
    folder = write_encoder(tmp_path, config={"matryoshka_dimensions": [8, 16]})
    assert run("-m", folder, "--dims", "8", "cat", "dog", "tree").stderr == ""
    assert "only [8, 16] are said" in run("-m", folder, "--dims", "7", "a", "b", "c").stderr


def write_notes(folder):
    (folder / "notes.md").write_text(
        "# green\n\nthe tree is green\n\nthe sky is blue\nand fast\n\n\na cat sat on a mat\n"
    )
    return folder / "notes.md"


def test_question(encoder, tmp_path):
    """`--query` ranks the paragraphs of files, a heading with its text, with path and line."""
    notes = write_notes(tmp_path)
    done = run_json("-m", encoder, notes, "--query", "blue sky", "--top", "9", "--query-prefix", "")
    places = {r["line"]: (r["last_line"], r["text"]) for r in done["results"]}
    assert places == {
        1: (3, "# green\n\nthe tree is green"),
        5: (6, "the sky is blue\nand fast"),
        9: (9, "a cat sat on a mat"),
    }
    assert {r["path"] for r in done["results"]} == {str(notes)}
    scores = [r["score"] for r in done["results"]]
    assert scores == sorted(scores, reverse=True)
    asked = np.array(done["vectors"][0])
    texts = [r["text"] for r in done["results"]]
    vectors = np.array(run_json("-m", encoder, *texts)["vectors"])
    np.testing.assert_allclose(vectors @ asked, scores, atol=1e-5)


def test_question_follows_the_metric(encoder, tmp_path):
    """With `l2` the nearest comes first, which is the smallest number."""
    notes = write_notes(tmp_path)
    done = run_json("-m", encoder, notes, "--query", "sky", "--metric", "l2", "--top", "2")
    scores = [r["score"] for r in done["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores)


def test_files_lines_and_patterns(encoder, tmp_path):
    """A file is one text; `--split line` makes each line one; a pattern names many files."""
    notes = write_notes(tmp_path)
    (tmp_path / "other.md").write_text("fast dog")
    assert len(run_json("-m", encoder, notes)["vectors"]) == 1
    assert len(run_json("-m", encoder, "--split", "line", notes)["vectors"]) == 5
    assert len(run_json("-m", encoder, tmp_path / "*.md")["vectors"]) == 2


def test_long_texts_are_cut(encoder):
    """What is longer than the model reads is cut, and that is said."""
    done = run("-m", encoder, "--json", "the cat " * 60, "dog")
    assert "1 of 2 texts were cut to 48 tokens" in done.stderr


def test_output_files(encoder, tmp_path):
    """`.npy`, `.jsonl` and `.json` hold the vectors that `--json` prints."""
    notes = write_notes(tmp_path)
    arguments = ["-m", encoder, "--split", "paragraph", notes]
    vectors = run_json(*arguments)["vectors"]
    for ending in ("npy", "jsonl", "json"):
        file = tmp_path / f"out.{ending}"
        done = run(*arguments, "-o", file)
        assert done.stdout == ""
        assert f"out.{ending}: 3 vectors of 24 dimensions" in done.stderr
    loaded = np.load(tmp_path / "out.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, vectors, atol=1e-7)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["vector"] for line in lines] == vectors
    assert [(line["path"], line["line"]) for line in lines] == [(str(notes), n) for n in (1, 5, 9)]
    whole = json.loads((tmp_path / "out.json").read_text())
    assert whole == {"vectors": vectors, "dims": 24, "pooling": "first"}


def test_what_a_person_sees(encoder, monkeypatch):
    """A table with length, shape and nearest neighbour of each text, then all pairs."""
    monkeypatch.setenv("COLUMNS", "100")
    out = run("-m", encoder, "the cat sat", "the cat sat on", "green tree").stdout
    assert "first pooling at the end · 24 dimensions · length 1 · cosine" in out
    assert re.search(r"1  the cat sat +\d+ +1 +[▁-█]{24} +#\d 0\.\d{3}", out)
    assert re.search(r"^ ?1 +1\.00 +-?0\.\d\d +-?0\.\d\d", out, re.MULTILINE)
    assert all(len(line.rstrip()) <= 100 for line in out.splitlines())
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run("-m", encoder, "the cat sat on the mat " * 5, "dog").stdout.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in narrow[1:])
    assert re.search(r"^1  the cat sat.*…  +33 +1 +[▁-█]{12} +#2 -?0\.\d{3}$", narrow[3])


def test_what_was_found(encoder, tmp_path, monkeypatch):
    """Hits stand in frames with their score and place."""
    monkeypatch.setenv("COLUMNS", "200")
    notes = write_notes(tmp_path)
    out = run("-m", encoder, notes, "--query", "a cat", "--top", "1").stdout
    assert re.search(r"1  -?0\.\d{3} [━╌]{10}  .*notes\.md:\d", out)


def test_page(encoder, tmp_path):
    """`--html` writes one page that fetches nothing, with every text escaped."""
    file = tmp_path / "page.html"
    run("-m", encoder, "<script>cat</script>", "dog & tree", "--html", file)
    page = file.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;cat" in page
    assert not re.search(r"(src|href)=", page)
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    cells = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")  # noqa: S314
    assert len(list(cells)) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer", "4", "cat"], "0 (the embedding rows) to 3"),
        (["--dims", "25", "cat"], "1 to 24"),
        (["--dims", "0", "cat"], "1 to 24"),
        (["--query", " ", "cat"], "--query is empty"),
        (["-o", "/nowhere/x.npy", "cat"], "no folder that can be written to"),
        (["--html", "/nowhere/x.html", "cat"], "no folder that can be written to"),
        (["-o", "x.csv", "cat"], ".npy, .jsonl, .json are allowed"),
        (["--pooling", "sum", "cat"], "'mean', 'last', 'first', 'max', 'mean+max'"),
        (["  "], "no text"),
        (["/nowhere/notes"], "there is no file /nowhere/notes; correct the name, or give the text"),
        (["a cat", "notes.md"], "there is no file notes.md"),
        ([], "there is no text"),
    ],
)
def test_wrong_usage(encoder, arguments, says):
    """Values that are not allowed are refused in one line that says what is."""
    done = run("-m", encoder, *arguments, code=2)
    assert says in done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


def test_unknown_pooling_asks_for_one(tmp_path):
    """A model that pools in a way that is not known works once a way is chosen."""
    folder = write_encoder(tmp_path, pooling={"pooling_mode_weightedmean_tokens": True})
    assert "weightedmean_tokens" in run("-m", folder, "cat", code=2).stderr
    assert run_json("-m", folder, "--pooling", "mean", "cat")["pooling"] == "mean"


def test_e5_prefixes_are_hinted_at(tmp_path):
    """An e5 model whose files name no prefixes says what it wants, unless one is given."""
    folder = write_encoder(tmp_path / "my-e5-small")
    assert "'passage: ' before texts" in run("-m", folder, "cat").stderr
    assert run("-m", folder, "--prefix", "passage: ", "cat").stderr == ""
    other = write_encoder(tmp_path / "e5-told", about=PROMPTS)
    assert run("-m", other, "cat").stderr == ""


def test_an_encoder_cannot_chat(encoder):
    """Asked to write text, an encoder is refused with the command that it is made for."""
    done = CliRunner().invoke(cli, ["generate", "-m", encoder, "hello"])
    assert done.exit_code == 1
    assert "use mlxchat embed" in done.stderr


@pytest.mark.model
def test_minilm():
    """A real MiniLM from the Hub finds the passage that a person would."""
    texts = ["How do I reset my password?", "The cake needs flour and eggs."]
    name = "sentence-transformers/all-MiniLM-L6-v2"
    done = run_json("-m", name, *texts, "--query", "I forgot my login", "--top", "2")
    assert done["results"][0]["text"] == texts[0]
    assert (done["dims"], done["pooling"]) == (384, "mean")
    assert done["results"][0]["score"] > 0.4 > 0.2 > done["results"][1]["score"]
