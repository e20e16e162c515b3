"""Files and commands in a message: the `@`, what is read, what is refused."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxchat.chat.attached import make_title, split_attached
from mlxchat.cli.attachments import (
    Attachment,
    Attachments,
    find_references,
    format_own_words,
)
from mlxchat.cli.files import find_files
from mlxchat.errors import AttachError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test works in a folder of its own, which is returned."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def compose(text, attached=None, **options):
    """Returns the message and what was said."""
    said = []
    attached = attached or Attachments()
    message = attached.compose(text, lambda text: len(text.split()), said.append, **options)
    return message, said


# -- where an `@` names a file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("@a.py", ["a.py"]),
        ("see @src/a.py, and (@b.txt).", ["src/a.py,", "b.txt)."]),
        ("mail me@example.com or a@b", []),
        ("@\"a b.txt\" @'c d'", ["a b.txt", "c d"]),
        (r"@a\ b.txt next", ["a b.txt"]),
        ("@@decorator", ["@"]),
        ("`@code` and x@", []),
        ("@ alone @", []),
        ("```\n@app.route\n```\n@a", ["a"]),
        ("~~~py\n@app.route\n", []),
        ("line\n@next", ["next"]),
        ('@"open', []),
    ],
)
def test_references(text, paths):
    """An `@` at the start of a word names a file; in words, code and alone it is text."""
    assert [reference.path for reference in find_references(text)] == paths


@given(st.text(st.sampled_from("@\"'\\ \n`~a./([é"), max_size=40))
def test_references_are_places_in_the_text(text):
    """Whatever is written, references stand in order, apart, at an `@`, and name something."""
    end = 0
    for reference in find_references(text):
        assert end <= reference.start < reference.end <= len(text)
        assert text[reference.start] == "@"
        assert reference.path
        assert "\n" not in reference.path
        before = text[reference.start - 1 : reference.start] if reference.start else ""
        assert re.fullmatch(r"[\s(\[{]?", before)
        end = reference.end


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("@\"'\\ \n`a.:/*?["), max_size=20))
def test_any_message(text):
    """Any text is a message or a refusal in one line; with nothing found it is sent as written."""
    refusal = ""
    try:
        message, _ = compose(text)
    except AttachError as error:
        message, refusal = text, str(error)
    assert not refusal or "; " in refusal
    assert message == text or "@@" in text


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(st.sampled_from("ab .-_é()"), min_size=1, max_size=8).filter(
        lambda name: name.strip(". ") and name == name.strip()
    )
)
def test_any_name_in_quotes(tmp_path_factory, name):
    """Every name can be named in quotes, and its text is in the message."""
    place = tmp_path_factory.mktemp("names")
    (place / name).write_text("inside")
    message, _ = compose(f'x @"{place}/{name}" y')
    assert f"{place}/{name}:\n```" in message
    assert "\ninside\n```\n\nx " in message


@given(st.text(), st.text(max_size=5))
def test_fences_hold(text, name):
    """No text can end the fence that it stands in."""
    block = Attachment(name or "n", text, len(text), "exit status 0").format_block()
    fence = re.search(r"\):\n(`{3,})\n", block)[1]
    assert block.endswith(fence)
    inner = block[block.index(f"):\n{fence}\n") + 3 + len(fence) + 1 : -len(fence)]
    assert inner.rstrip("\n") == text.rstrip("\n")
    for line in re.split(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", inner):
        assert not line.strip().startswith(fence)


# -- messages --------------------------------------------------------------------------------------


def test_several_files(folder):
    """Files stand before the text in their order, each once; the `@` goes."""
    (folder / "a.py").write_text("A\n")
    (folder / "b.md").write_text("```\ncode\n```\n")
    message, said = compose("compare @a.py, @b.md and @a.py!")
    assert message == (
        "a.py:\n```py\nA\n```\n\nb.md:\n````md\n```\ncode\n```\n````\n\n"
        "compare a.py, b.md and a.py!"
    )
    assert said == ["Attached a.py, 2 B, 1 tokens.", "Attached b.md, 13 B, 3 tokens."]


def test_words_after_an_at_are_text():
    """A word that looks like no path is text, and the person is told."""
    message, said = compose("what is @dataclass, @app.get('/x') and @@a/b?")
    assert message == "what is @dataclass, @app.get('/x') and @a/b?"
    assert said[0] == "There is no file dataclass; @dataclass is text."


def test_literal_messages(folder):
    """In a block nothing is looked for."""
    (folder / "a.py").write_text("A")
    assert compose("@a.py @@x", is_literal=True) == ("@a.py @@x", [])


@pytest.mark.parametrize("name", ["no/such", "none.txt", "./none", "~/none-such-file"])
def test_missing_files(name):
    """What looks like a path and is none is refused, with a way to send it as text."""
    with pytest.raises(AttachError, match=r"there is no file .*; correct .* write @@"):
        compose(f"see @{name}.")


def test_a_refused_message_changes_nothing(folder):
    """When one file is refused, none is attached."""
    (folder / "a.py").write_text("A")
    attached = Attachments()
    attached.add_files("a.py", lambda text: None)
    with pytest.raises(AttachError):
        compose("@a.py @b.py", attached)
    assert [attachment.name for attachment in attached.pending] == ["a.py"]


def test_the_newest_version_is_attached(folder):
    """A file that is attached and named again is read again, and stands there once."""
    (folder / "a.py").write_text("old")
    attached = Attachments()
    attached.add_files("a.py", lambda text: None)
    (folder / "a.py").write_text("new")
    message, _ = compose("see @a.py", attached)
    assert message == "a.py:\n```py\nnew\n```\n\nsee a.py"
    attached.sent()
    assert attached.pending == []


def test_drop():
    """/drop takes one or all; wrong numbers are refused."""
    attached = Attachments(pending=[Attachment(name, "", 0) for name in "abc"])
    assert [a.name for a in attached.drop(2)] == ["b"]
    with pytest.raises(AttachError, match="no attachment 3; give 1 to 2"):
        attached.drop(3)
    assert [a.name for a in attached.drop()] == ["a", "c"]
    with pytest.raises(AttachError, match="nothing is attached"):
        attached.drop()


@given(texts=st.lists(st.text(max_size=30)), own=st.text(max_size=30))
def test_what_is_attached_is_told_apart(texts, own):
    """What a message is made of is found again, whatever the files hold."""
    files = [Attachment(f"{n}.txt", text, 1) for n, text in enumerate(texts)]
    message = Attachments(pending=files).compose(own, lambda t: None, print, is_literal=True)
    attached, rest, names = split_attached(message)
    if not split_attached(own)[2]:
        assert (rest, names) == (own, [file.name for file in files])
    assert attached + rest == message


def test_own_words():
    """/tree and Tab show what the person wrote, and how many texts were attached to it."""
    message = (
        "a.py:\n```py\nx\n```\n\nOutput of `ls` (exit status 0):\n```\na.py\n```\n\nwhat is\nit?"
    )
    assert format_own_words(message) == "[2 attached] what is it?"
    assert format_own_words("see:\n\n```\nx\n```") == "see: ``` x ```"


def test_titles():
    """A conversation is called by the person's words; without any, by what is attached."""
    files = [Attachment("a b.py", "x", 1), Attachment("ls", "y", 1, "exit status 0")]
    compose = Attachments(pending=files).compose
    assert make_title(compose("why?", lambda t: None, print)) == "why?"
    assert make_title(compose(" ", lambda t: None, print)) == (
        "a b.py, Output of `ls` (exit status 0)"
    )
    assert make_title("x" * 300) == "x" * 200
    assert make_title("") == ""


def test_estimated_tokens():
    """Until something can count, tokens are estimated and marked so."""
    assert Attachment("a", "x" * 4000, 4000).describe(lambda text: None) == (
        "a, 3.9 KiB, ≈ 1 000 tokens"
    )


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text", "notice"),
    [
        ("\ufeffhé\r\nx".encode(), "hé\nx", ""),
        ("hé".encode("utf-16"), "hé", "a is not UTF-8; it was read as UTF-16."),
        (b"h\xe9 \x93x\x94", "hé “x”", "a is not UTF-8; it was read as Windows-1252."),
        (b"", "", ""),
        (b"\x1b[31mred", "\x1b[31mred", ""),
    ],
)
def test_encodings(folder, data, text, notice):
    """UTF-8 is read without its mark; other encodings with a notice."""
    (folder / "a").write_bytes(data)
    found = find_files("a", 100)
    assert found.files[0].text == text
    assert found.files[0].size == len(data)
    assert list(found.notices) == [notice] * bool(notice)


@pytest.mark.parametrize(
    "data", [b"\x00\x01", b"%PDF-1.7 text", b"PK\x03\x04abc", b"a\x01\x02" * 9]
)
def test_binary_files(folder, data):
    """Binary files are refused."""
    (folder / "a").write_bytes(data)
    with pytest.raises(AttachError, match="a is a binary file; only text"):
        find_files("a", 100)


def test_large_files(folder):
    """A file above the limit is refused before it is read, with the limit and how to raise it."""
    with open(folder / "a", "wb") as file:
        file.truncate(5 * 2**40)
    with pytest.raises(AttachError, match=r"5120.0 GiB, more than 2.0 KiB, .*max-file-kib N"):
        find_files("a", 2048)
    (folder / "b").write_bytes(b"x" * 2048)
    assert find_files("b", 2048).files[0].size == 2048


def test_what_is_no_file(folder):
    """Folders, pipes, devices and loops of links are refused; a pipe is not waited for."""
    (folder / "d").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    for name, part in {
        "d": "there is no text file in d; name another",
        "pipe": "no regular file",
        "/dev/null": "no regular file",
        "loop": "too many levels of symbolic links",
        "dangling": "there is no file dangling",
        "a\0b": "is no path",
        "~nobody-here/x": "no home folder",
    }.items():
        with pytest.raises(AttachError, match="; ") as caught:
            find_files(name, 100)
        assert part in str(caught.value)


def test_a_link_is_followed_and_told(folder, tmp_path):
    """A link that is named is read, and where it leads is said."""
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    found = find_files("link", 100)
    assert found.notices == (f"link is a link to {tmp_path / 'secret'}.",)


def test_patterns(folder, tmp_path):
    """A pattern takes text files below its folder: nothing hidden, binary, or linked from away."""
    for name in ("b.py", "a.py", "sub/c.py", ".hidden.py", ".git/x.py", "bin.py", "sub/d.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0" if name == "bin.py" else name.encode())
    (tmp_path / "away.py").write_text("secret")
    (folder / "away.py").symlink_to(tmp_path / "away.py")
    (folder / "sub" / "up").symlink_to(folder)
    found = find_files("**/*.py", 1000)
    assert [file.name for file in found.files] == ["a.py", "b.py", "sub/c.py"]
    assert found.notices == (
        "Left out as binary: 1 file.",
        "Left out as links to other places: 1 file.",
    )
    assert [f.name for f in find_files(".git/*", 1000).files] == [".git/x.py"]
    assert [f.name for f in find_files(f"{folder}/s*/c.py", 99).files] == [f"{folder}/sub/c.py"]


def test_a_folder(folder, tmp_path):
    """A folder stands for the text files in it, as deep as they lie, without what nobody wrote."""
    names = ("b.py", "in/c.txt", ".git/config", "in/.env", "node_modules/x.js", "bin.dat")
    for name in names:
        (folder / "d" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "d" / name).write_bytes(b"\0" if name == "bin.dat" else name.encode())
    (tmp_path / "away.py").write_text("secret")
    (folder / "d" / "away.py").symlink_to(tmp_path / "away.py")
    (folder / "d" / "in" / "up").symlink_to(folder)
    for name in ("d", "d/", f"{folder}/d"):
        found = find_files(name, 1000)
        prefix = name.rstrip("/")
        assert [file.name for file in found.files] == [f"{prefix}/b.py", f"{prefix}/in/c.txt"]
        assert found.notices == ("Left out as binary: 1 file.",)
    with pytest.raises(AttachError, match=r"the 3 files of d are larger than 5 B, the limit"):
        find_files("d", 5)
    for number in range(201):
        (folder / "d" / f"{number:03}.txt").write_text("x")
    with pytest.raises(AttachError, match=r"d/ holds more than 200 files; .* such as d/\*\.md"):
        find_files("d/", 1000)


def test_a_folder_in_a_message(folder):
    """`@dir/` attaches its files, many of them in one line; without the slash it asks."""
    (folder / "d").mkdir()
    for number in range(13):
        (folder / "d" / f"{number:02}.txt").write_text("x\n")
    said = []
    message = Attachments().compose("sum up @d/, please", lambda text: len(text), said.append)
    assert message.startswith("d/00.txt:\n```txt\nx\n```\n\nd/01.txt:")
    assert message.endswith("\n\nsum up d/, please")
    assert said == ["Attached 13 files of d/, 26 B, 26 tokens."]
    with pytest.raises(AttachError, match=r"d is a folder; write @d/ to attach its files, or @@d"):
        Attachments().compose("come @d", lambda text: None, said.append)


def test_patterns_that_are_refused(folder):
    """Nothing found, too much text and too many files are refused."""
    with pytest.raises(AttachError, match=r"no text file matches \*.py; name another"):
        find_files("*.py", 100)
    for number in range(201):
        (folder / f"{number:03}.txt").write_text("x")
    with pytest.raises(AttachError, match="names 201 files; 200 are allowed, narrow it"):
        find_files("*.txt", 1000)
    with pytest.raises(AttachError, match=r"the 10 files of 00.* are larger than 5 B, the limit"):
        find_files("00*.txt", 5)


def test_a_file_with_a_wildcard_in_its_name(folder):
    """A name that is there is a name, whatever is in it."""
    (folder / "a[1].txt").write_text("x")
    (folder / "a1.txt").write_text("y")
    assert [file.name for file in find_files("a[1].txt", 99).files] == ["a[1].txt"]
