"""The message tree: every move, and how it is drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.chat.conversation import Conversation, Node
from mlxchat.chat.template import Message
from mlxchat.errors import UsageError


def say(conversation: Conversation, *texts: str) -> None:
    """Appends a question and its answer for each text."""
    for text in texts:
        conversation.append(Message("user", text))
        conversation.append(Message("assistant", text.upper()))


def to_question(conversation: Conversation, turn: int | None = None) -> Node:
    """Moves to a question, as `/retry` does."""
    node = conversation.question(turn)
    conversation.head = node.id
    return node


def before_question(conversation: Conversation, turn: int | None = None) -> Node:
    """Moves before a question, as `/edit` does."""
    node = conversation.question(turn)
    conversation.head = node.parent
    return node


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages()]


def drawn(conversation: Conversation) -> list[str]:
    """The tree as text: two blanks per depth, `*` for the path, `<` for the head."""
    return [
        "  " * b.depth + b.node.message.content + "*" * b.is_on_path + "<" * b.is_head
        for b in conversation.branches()
    ]


@pytest.fixture
def conversation() -> Conversation:
    """Three turns: messages 1 to 6."""
    conversation = Conversation()
    say(conversation, "a", "b", "c")
    return conversation


def test_messages_are_the_path(conversation: Conversation) -> None:
    """The template reads the branch from its start, the system prompt first."""
    assert texts(conversation) == ["a", "A", "b", "B", "c", "C"]
    conversation.system = "be brief"
    assert texts(conversation)[:2] == ["be brief", "a"]
    assert conversation.messages()[0].role == "system"
    conversation.system = ""
    assert texts(conversation)[0] == "a"
    assert Conversation("only").messages() == [Message("system", "only")]


def test_nodes_are_numbered_as_they_come(conversation: Conversation) -> None:
    """Ids count from 1; the parent is the message before."""
    assert [node.id for node in conversation.path()] == [1, 2, 3, 4, 5, 6]
    assert [node.parent for node in conversation.path()] == [None, 1, 2, 3, 4, 5]
    assert [node.id for node in conversation.path(4)] == [1, 2, 3, 4]
    assert [node.id for node in conversation.questions()] == [1, 3, 5]
    assert [node.id for node in conversation.children(None)] == [1]
    assert conversation.children(6) == []


@pytest.mark.parametrize(
    ("count", "undone", "left"),
    [(1, 1, "aAbB"), (2, 2, "aA"), (3, 3, ""), (9, 3, ""), (0, 0, "aAbBcC")],
)
def test_undo(conversation: Conversation, count: int, undone: int, left: str) -> None:
    """Takes back whole turns, at most all of them; everything stays in the tree."""
    assert conversation.undo(count) == undone
    assert "".join(texts(conversation)) == left
    assert len(conversation.nodes) == 6


def test_undo_takes_back_nothing_for_nonsense(conversation: Conversation) -> None:
    """A negative count, or an empty conversation, changes nothing."""
    assert conversation.undo(-1) == 0
    assert conversation.head == 6
    assert Conversation().undo() == 0


def test_undo_of_a_question_without_answer(conversation: Conversation) -> None:
    """An unanswered question is a turn too."""
    conversation.append(Message("user", "d"))
    assert conversation.undo() == 1
    assert conversation.head == 6


def test_answering_again(conversation: Conversation) -> None:
    """Back at a question, the next answer stands beside the old one."""
    assert to_question(conversation).id == 5
    conversation.append(Message("assistant", "C2"))
    assert texts(conversation)[-2:] == ["c", "C2"]
    assert [n.message.content for n in conversation.children(5)] == ["C", "C2"]
    assert to_question(conversation, 1).id == 1
    assert texts(conversation) == ["a"]


def test_asking_otherwise(conversation: Conversation) -> None:
    """Before a question, another takes its place; the old branch stays."""
    assert before_question(conversation, 2).id == 3
    say(conversation, "x")
    assert texts(conversation) == ["a", "A", "x", "X"]
    assert [n.message.content for n in conversation.children(2)] == ["b", "x"]
    before_question(conversation, 1)
    assert conversation.head is None
    say(conversation, "y")
    assert texts(conversation) == ["y", "Y"]


@pytest.mark.parametrize("turn", [0, -1, 4, 99])
def test_turns_that_are_not_there(conversation: Conversation, turn: int) -> None:
    """The message says which turns this branch has, and nothing moves."""
    with pytest.raises(UsageError, match=f"no turn {turn}; this branch has turns 1 to 3"):
        conversation.question(turn)
    assert conversation.head == 6


def test_turns_of_an_empty_conversation() -> None:
    """Before the first message there is nothing to go back to."""
    for turn in (None, 1):
        with pytest.raises(UsageError, match="nothing was said yet"):
            Conversation().question(turn)


def test_goto(conversation: Conversation) -> None:
    """Any message of any branch; a question is taken with its last answer."""
    to_question(conversation, 2)
    conversation.append(Message("assistant", "B2"))
    assert conversation.goto(6).id == 6
    assert texts(conversation) == ["a", "A", "b", "B", "c", "C"]
    assert conversation.goto(3).message.content == "B2"
    assert texts(conversation) == ["a", "A", "b", "B2"]
    assert conversation.goto(4).message.content == "B"
    conversation.append(Message("user", "alone"))
    assert conversation.goto(8).id == 8  # an unanswered question stays one
    for number in (0, 9, -3):
        with pytest.raises(UsageError, match=f"no message {number}; /tree"):
            conversation.goto(number)
    assert conversation.head == 8


def test_reset(conversation: Conversation) -> None:
    """All messages are gone, the system prompt stays, numbers start over."""
    conversation.system = "s"
    conversation.reset()
    assert texts(conversation) == ["s"]
    assert conversation.append(Message("user", "n")).id == 1


def test_one_branch_is_drawn_flat(conversation: Conversation) -> None:
    """Without forks nothing is indented."""
    assert drawn(conversation) == ["a*", "A*", "b*", "B*", "c*", "C*<"]
    assert drawn(Conversation()) == []


def test_forks_are_indented(conversation: Conversation) -> None:
    """Where a message has two followers, each branch is one deeper, the oldest first."""
    conversation.goto(2)
    say(conversation, "x", "y")
    assert drawn(conversation) == [
        "a*", "A*", "  b", "  B", "  c", "  C", "  x*", "  X*", "  y*", "  Y*<",
    ]  # fmt: skip
    to_question(conversation, 2)
    conversation.append(Message("assistant", "X2"))
    assert drawn(conversation)[6:] == ["  x*", "    X", "    y", "    Y", "    X2*<"]


def test_two_beginnings(conversation: Conversation) -> None:
    """An edit of the first question makes two roots, both indented."""
    before_question(conversation, 1)
    say(conversation, "z")
    assert drawn(conversation) == ["  a", "  A", "  b", "  B", "  c", "  C", "  z*", "  Z*<"]


@bounded(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from("saugrx"), st.integers(1, 12)), max_size=25))
def test_any_moves_keep_a_tree(moves: list[tuple[str, int]]) -> None:
    """After any moves each message is drawn once, and the path is what is on it."""
    conversation = Conversation()
    for move, number in moves:
        try:
            if move == "s":
                say(conversation, str(number))
            elif move == "a":
                to_question(conversation, number)
                conversation.append(Message("assistant", "again"))
            elif move == "u":
                conversation.undo(number % 3)
            elif move == "g":
                conversation.goto(number)
            elif move == "r":
                before_question(conversation, number)
            else:
                conversation.append(Message("user", "open"))
        except UsageError:
            pass
    branches = list(conversation.branches())
    assert sorted(b.node.id for b in branches) == sorted(conversation.nodes)
    assert [b.node.id for b in branches if b.is_on_path] == [n.id for n in conversation.path()]
    heads = [b.node.id for b in branches if b.is_head]
    assert heads == ([] if conversation.head is None else [conversation.head])
    for branch in branches:  # nobody is drawn before the message it follows
        drawn_before = [b.node.id for b in branches[: branches.index(branch)]]
        assert branch.node.parent is None or branch.node.parent in drawn_before
