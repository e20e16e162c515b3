"""`inspect steer`, `patch` and `map`, `/steer` and `--steer`, as a person uses them."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from test_steering import HELD_OUT, MADE_OF
from tiny import make_tiny_folder

from mlxchat.cli.main import cli
from mlxchat.cli.slash import COMMANDS
from mlxchat.lens.steering_file import steering_folder

CAPITALS = "Write in capitals."


def run(*arguments, code=0, **more):
    done = CliRunner().invoke(cli, [*map(str, arguments)], **more)
    assert done.exit_code == code, done.output
    return done


def run_json(*arguments, **more):
    return json.loads(run(*arguments, "--json", **more).stdout)


def svgs(file):
    """Returns the pictures of a page, which fetches nothing."""
    page = file.read_text()
    assert not re.search(r"(src|href)=|<script", page)
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return [ElementTree.fromstring(svg) for svg in found]  # noqa: S314


def write_pairs(folder):
    """Writes files of the same questions with and without a wish for capitals."""
    messages = [
        [{"role": "system", "content": CAPITALS}, {"role": "user", "content": text}]
        for text in MADE_OF
    ]
    (folder / "positive.jsonl").write_text("\n".join(map(json.dumps, messages)))
    (folder / "negative.txt").write_text("\n".join([*MADE_OF, ""]))
    return "--positive", folder / "positive.jsonl", "--negative", folder / "negative.txt"


@pytest.fixture
def capitals(tmp_path):
    """The vector `capitals` of the built-in model, as `make` prints it."""
    return run_json("inspect", "steer", "make", "capitals", *write_pairs(tmp_path))


def capital_share(text):
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters)


def test_make_show_list(capitals, tmp_path, monkeypatch):
    """`make` stores what it prints, `show` prints it again, `list` names it."""
    assert (capitals["num_pairs"], capitals["held_out"], capitals["model"]) == (8, True, "builtin")
    assert len(capitals["layers"]) > capitals["layer"]
    assert capitals["positive"][0] == f"system: {CAPITALS} | user: {MADE_OF[0]}"
    assert run_json("inspect", "steer", "show", "capitals") == capitals
    assert run_json("inspect", "steer", "list")["vectors"] == [capitals]
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("inspect", "steer", "show", "capitals", "--html", tmp_path / "page.html").stdout
    assert "Strongest at" in shown
    assert len(re.findall(r"━|─", shown)) > 100
    assert len(svgs(tmp_path / "page.html")) == 1
    assert re.search(r"capitals +builtin +\d+ +8", run("inspect", "steer", "list").stdout)


def test_apply(capitals, tmp_path):
    """Strength 0 is the plain answer; the measured best one writes in capitals."""
    best = max(capitals["sweep"], key=lambda s: s["effect"])["coeff"]
    page = tmp_path / "page.html"
    arguments = ["capitals", HELD_OUT[1], "--strength", 0, "--strength", best, "--html", page]
    plain, steered = run_json("inspect", "steer", "apply", *arguments)["results"]
    answer = run("generate", "--no-history", "--temp", "0", HELD_OUT[1]).stdout.strip()
    assert plain["text"].strip() == answer
    assert capital_share(plain["text"]) < 0.3 < capital_share(steered["text"])
    assert HELD_OUT[1] in page.read_text()


def test_generate_steers_and_verifies(capitals):
    """`generate --steer` answers in another style, and `--verify` proves it."""
    best = max(capitals["sweep"], key=lambda s: s["effect"])["coeff"]
    options = ("--no-history", "--temp", "0", "--verify", "--json", HELD_OUT[1])
    steered = json.loads(run("generate", "--steer", f"capitals:{best}", *options).stdout)
    plain = json.loads(run("generate", "--steer", "capitals:0", *options).stdout)
    assert steered["verify"]["tokens_equal"]
    assert steered["verify"]["max_abs_logit_diff"] < 1e-3
    assert capital_share(plain["text"]) < 0.3 < capital_share(steered["text"])


def test_the_dial_in_the_chat(capitals):
    """`/steer` takes effect on the next turn, and `/steer off` takes it back."""
    best = max(capitals["sweep"], key=lambda s: s["effect"])["coeff"]
    question = HELD_OUT[1]
    lines = [question, "/steer", f"/steer capitals {best}", question, "/steer off", question]
    done = run(
        *("chat", "--no-history", "--temp", "0", "--verify", "--json"),
        input="\n".join([*lines[:1], "/reset", *lines[1:4], "/reset", *lines[4:]]),
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(answer["verify"]["max_abs_logit_diff"] < 1e-3 for answer in answers)
    plain, steered, again = (answer["text"] for answer in answers)
    assert plain == again
    assert capital_share(plain) < 0.3 < capital_share(steered)
    assert "Steering: off. There are capitals." in done.stderr
    assert f"Steering: capitals at {best:g}, from the next turn on." in done.stderr


def test_tab_completes_vectors(capitals):
    """After `/steer` Tab offers the vectors, each with its best strength, and `off`."""
    best = max(capitals["sweep"], key=lambda s: s["effect"])["coeff"]
    complete = COMMANDS["steer"].complete
    assert [name for name, _ in complete("")] == ["off", f"capitals {best:g}"]
    assert complete("cap") == [(f"capitals {best:g}", "made on builtin")]


def test_export(capitals, tmp_path):
    """A vector is written as safetensors or as JSON with its numbers; no other ending."""
    for ending in ("safetensors", "json"):
        run("inspect", "steer", "export", "capitals", tmp_path / f"out.{ending}")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert np.array(stored["mean"]).shape == np.array(stored["pca"]).shape
    assert len(stored["mean"]) == len(capitals["layers"])
    assert (tmp_path / "out.safetensors").stat().st_size > 1000
    done = run("inspect", "steer", "export", "capitals", tmp_path / "out.csv", code=2)
    assert ".safetensors and .json are allowed" in done.stderr


def test_remove(capitals):
    """A vector that is removed is gone; a name of none says which there are."""
    done = run("inspect", "steer", "remove", "capitol", code=2)
    assert done.stderr == "Error: there is no steering vector capitol; there are capitals\n"
    assert run("inspect", "steer", "remove", "capitals").stderr == "Removed capitals.\n"
    assert run_json("inspect", "steer", "list") == {"vectors": []}
    for name in ("capitals", "../capitals"):
        done = run("inspect", "steer", "remove", name, code=2)
        assert done.stderr.count("\n") == 1


def test_remove_a_damaged_vector(mlxchat_home):
    """A file that cannot be read can be removed."""
    path = steering_folder() / "broken.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no vector")
    run("inspect", "steer", "remove", "broken")
    assert not path.exists()


def test_a_vector_of_another_model(capitals, tmp_path):
    """Another model refuses it, at the start and in the chat; the chat goes on."""
    other = make_tiny_folder(tmp_path / "tiny")
    done = run("generate", "-m", other, "--steer", "capitals:1", "hi", code=1 + 1)
    assert "was made on builtin" in done.stderr
    chat = run("chat", "-m", other, "--no-history", "--json", input="/steer capitals 1\n", code=1)
    assert "was made on builtin" in chat.stderr
    assert (
        "was made on"
        in run("inspect", "steer", "apply", "capitals", "a", "-m", other, code=2).stderr
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--steer", "none:1", "hi"], "there is no steering vector none"),
        (["generate", "--steer", "none", "hi"], "give a vector's name and a number"),
        (["inspect", "steer", "show", "../x"], "is no name for a steering vector"),
        (["inspect", "steer", "show", "x"], "make one with mlxchat inspect steer make"),
    ],
)
def test_wrong_names(arguments, says):
    """A vector that is not there, and what is no name, are refused in one line."""
    done = run(*arguments, code=2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("positive", "negative", "says"),
    [
        ("a\nb\n", "c\n", "has 2 prompts and"),
        ("\n", "c\n", "has no prompts"),
        ('{"role": "user"}\n', "c\n", "line 1 of"),
        ('[{"role": "king", "content": "x"}]\n', "c\n", "is no prompt"),
        ("nonsense\n", "c\n", "is no prompt"),
    ],
)
def test_files_that_make_no_vector(tmp_path, positive, negative, says):
    """Files that do not pair or hold no prompts are refused, with the line."""
    suffix = "txt" if positive.startswith(("a", "\n")) else "jsonl"
    (tmp_path / f"p.{suffix}").write_text(positive)
    (tmp_path / "n.txt").write_text(negative)
    files = ("--positive", tmp_path / f"p.{suffix}", "--negative", tmp_path / "n.txt")
    assert says in run("inspect", "steer", "make", "x", *files, code=2).stderr


PATCH = ["what is the capital of France?", "--at", "France", "--chat"]
INTO = ["--template", "what is the capital of Japan?", "--placeholder", "Japan"]


def test_patch(tmp_path, monkeypatch):
    """Another country's state is told by its capital; after the last block nothing changes."""
    page = tmp_path / "page.html"
    done = run_json("inspect", "patch", *PATCH, *INTO, "--html", page)
    assert "Tokyo" in done["plain"]["text"]
    assert any("Paris" in row["text"] for row in done["layers"])
    last = done["layers"][-1]
    assert (last["divergence"], last["tokens"]) == (0.0, done["plain"]["tokens"])
    assert [row["layer"] for row in done["layers"]] == list(range(len(done["layers"])))
    assert "Tokyo" in page.read_text()
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("inspect", "patch", *PATCH, *INTO, "--layer", "1").stdout
    assert re.search(r"1 +1 +.*Paris", shown)


def test_patch_onto_itself():
    """A state put back in its own place leaves the answer as it is, at every layer."""
    template = ["--template", PATCH[0], "--placeholder", "France"]
    done = run_json("inspect", "patch", *PATCH, *template)
    assert {row["text"] for row in done["layers"]} == {done["plain"]["text"]}
    assert {row["divergence"] for row in done["layers"]} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--at", "Spain"], "the text has no 'Spain'"),
        (["--placeholder", "zebra"], "the text has no 'zebra'"),
        (["--layer", "99"], "layer 99 is not allowed"),
        (["--into", "-1"], "layer -1 is not allowed"),
    ],
)
def test_patch_wrong_usage(arguments, says):
    """Words that are not there and layers that do not exist are refused."""
    assert says in run("inspect", "patch", "in France", *arguments, code=2).stderr


KINDS = {
    "country": ["France", "Japan", "Spain", "Italy", "Germany"],
    "animal": ["dog", "cat", "horse", "cow", "bird"],
}


def test_map_components(monkeypatch, tmp_path):
    """Words alone are drawn by principal components, with the variance along both axes."""
    page = tmp_path / "page.html"
    done = run_json("inspect", "map", "dog,cat", "France", "Japan", "--html", page)
    assert (done["kind"], done["words"]) == ("components", ["dog", "cat", "France", "Japan"])
    for layer in done["layers"]:
        assert len(layer["points"]) == 4
        assert 0 < sum(layer["explained"]) <= 1 + 1e-6
        np.testing.assert_allclose(np.mean(layer["points"], axis=0), 0, atol=1e-2)
    assert len(svgs(page)) == len(done["layers"])
    monkeypatch.setenv("COLUMNS", "90")
    shown = run("inspect", "map", "dog", "cat", "France", "Japan", "--layer", "0").stdout
    assert all(word in shown for word in ("● dog", "France", "Japan", "the embedding"))
    assert all(len(line.rstrip()) <= 90 for line in shown.splitlines())


def test_map_labels(tmp_path, monkeypatch):
    """With labels it is told how many words held out get theirs, layer by layer."""
    lines = [f"{word}\t{kind}" for kind, words in KINDS.items() for word in words]
    (tmp_path / "kinds.tsv").write_text("\n".join(lines))
    done = run_json("inspect", "map", tmp_path / "kinds.tsv")
    assert (done["kind"], len(done["labels"])) == ("labels", 10)
    scores = [layer["held_out"] for layer in done["layers"]]
    assert max(scores) > 0.5  # which is chance
    assert scores[done["best_layer"]] == max(scores)
    monkeypatch.setenv("COLUMNS", "90")
    shown = run("inspect", "map", tmp_path / "kinds.tsv").stdout
    assert "● country   ▲ animal" in shown
    assert "chance is 50 %" in shown


def test_map_coordinates(tmp_path):
    """With two numbers a word, R squared on words held out is told."""
    words = [word for words in KINDS.values() for word in words]
    lines = [f"{word}\t{i % 5}\t{i // 5}" for i, word in enumerate(words)]
    (tmp_path / "places.tsv").write_text("\n".join(lines))
    done = run_json("inspect", "map", tmp_path / "places.tsv", "--template", "I like {} .")
    assert (done["kind"], done["coordinates"][6]) == ("coordinates", [1.0, 1.0])
    assert all(layer["held_out"] <= 1 for layer in done["layers"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a\tb\nc\n", "makes no map"),
        ("a\t1\t2\nb\tx\t3\n", "without two numbers"),
        ("dog\ndog\ncat\n", "'dog' is there twice"),
        ("dog\ncat\n", "2 words make no map; give at least 3"),
        ("dog\tx\ncat\ty\ncow\tx\n", "3 words make no map; give at least 5"),
    ],
)
def test_files_that_make_no_map(tmp_path, content, says):
    """Lines that differ, lack numbers, name a word twice, or are too few, are refused."""
    (tmp_path / "words.tsv").write_text(content)
    assert says in run("inspect", "map", tmp_path / "words.tsv", code=2).stderr


def test_map_wrong_usage():
    """A layer that is not there and a template without a place are refused."""
    assert "there are 0 to" in run("inspect", "map", "a", "b", "c", "--layer", "99", code=2).stderr
    assert "has no {}" in run("inspect", "map", "a", "b", "c", "--template", "x", code=2).stderr
