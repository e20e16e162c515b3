"""A conversation as a tree of messages: editing, retrying, undoing and forking are moves on it.

Every message that was ever said stays in the tree; the head says where the person is. What a move
costs in tokens is found out later, by the planner of the engine, from the ids alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mlxchat.chat.template import Message
from mlxchat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Origin:
    """How a model came to give an answer.

    Attributes:
        fingerprint: The model that the answer's ids belong to; None is unknown.
        stop_reason: Why the answer ended; None is unknown.
        token_ids: Where it was cut off: all ids that were generated, with markers and what a stop
            string took away.
    """

    fingerprint: str | None = None
    stop_reason: str | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One message and its place in the tree.

    Attributes:
        id: Number of the message, counted from 1 in the order of arrival.
        parent: The message before it, or None at the start.
        message: What was said.
        origin: Of an answer; None is unknown.
    """

    id: int
    parent: int | None
    message: Message
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree as `/tree` draws it."""

    node: Node
    depth: int
    is_head: bool
    is_on_path: bool


@dataclass(slots=True)
class Conversation:
    """The tree, the system prompt and the head.

    Attributes:
        system: Text of the system prompt, or None.
        nodes: All messages by id.
        head: The last message of the branch the person is on, or None before the first.
        dropped: The last message that no longer stands in the prompt, for want of room.
    """

    system: str | None = None
    nodes: dict[int, Node] = field(default_factory=dict)
    head: int | None = None
    dropped: int | None = None

    def path(self, head: int | None = None) -> list[Node]:
        """Returns the messages from the start to the head (or to another node)."""
        node_id = self.head if head is None else head
        nodes = []
        while node_id is not None:
            nodes.append(self.nodes[node_id])
            node_id = nodes[-1].parent
        return nodes[::-1]

    def messages(self) -> list[Message]:
        """Returns the path as the template reads it, system prompt first."""
        system = [Message("system", self.system)] if self.system else []
        return system + [node.message for node in self.path()]

    def append(self, message: Message, origin: Origin | None = None) -> Node:
        """Adds a message after the head and moves the head to it."""
        node = Node(len(self.nodes) + 1, self.head, message, origin)
        self.nodes[node.id] = node
        self.head = node.id
        return node

    def questions(self) -> list[Node]:
        """Returns the user messages on the path: turn n is the n-th of them."""
        return [node for node in self.path() if node.message.role == "user"]

    def children(self, node_id: int | None) -> list[Node]:
        """Returns the messages that follow a node, oldest first."""
        return [node for node in self.nodes.values() if node.parent == node_id]

    def undo(self, count: int = 1) -> int:
        """Moves the head before the last `count` turns; returns how many were taken back."""
        questions = self.questions()
        count = min(max(count, 0), len(questions))
        if count:
            self.head = questions[-count].parent
        return count

    def question(self, turn: int | None = None) -> Node:
        """Returns a question of the path, where another answer or question can take its turn.

        Args:
            turn: Counted from 1; None is the last.

        Raises:
            UsageError: There is no such turn.
        """
        questions = self.questions()
        if not questions:
            raise UsageError("nothing was said yet; say something first")
        if turn is None:
            return questions[-1]
        if not 1 <= turn <= len(questions):
            raise UsageError(
                f"there is no turn {turn}; this branch has turns 1 to {len(questions)}"
            )
        return questions[turn - 1]

    def goto(self, node_id: int) -> Node:
        """Moves the head to any message; a question is taken with its last answer.

        Raises:
            UsageError: There is no such message.
        """
        node = self.nodes.get(node_id)
        if node is None:
            raise UsageError(f"there is no message {node_id}; /tree shows the numbers")
        answers = self.children(node_id) if node.message.role == "user" else []
        self.head = answers[-1].id if answers else node_id
        return self.nodes[self.head]

    def forget_ids(self, fingerprint: str | None) -> None:
        """Forgets the ids of answers that this model did not give: their text alone counts."""
        for node in list(self.nodes.values()):
            message, origin = node.message, node.origin or Origin()
            has_ids = message.content_ids or message.reasoning_ids or origin.token_ids
            if has_ids and (origin.fingerprint is None or origin.fingerprint != fingerprint):
                self.nodes[node.id] = replace(
                    node,
                    message=replace(message, content_ids=None, reasoning_ids=None),
                    origin=replace(origin, token_ids=()),
                )

    def reset(self) -> None:
        """Forgets all messages; the system prompt stays."""
        self.nodes.clear()
        self.head = self.dropped = None

    def branches(self) -> Iterator[Branch]:
        """Yields all messages, each branch indented one deeper than where it leaves its sibling."""
        on_path = {node.id for node in self.path()}
        stack = [(node, 0) for node in reversed(self.children(None))]
        first_level = len(stack) > 1
        stack = [(node, int(first_level)) for node, _ in stack]
        while stack:
            node, depth = stack.pop()
            yield Branch(node, depth, node.id == self.head, node.id in on_path)
            followers = self.children(node.id)
            deeper = depth + (len(followers) > 1)
            stack.extend((child, deeper) for child in reversed(followers))
