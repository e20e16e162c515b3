"""What happened since the last turn that may make the next one read ids again."""

from dataclasses import dataclass


@dataclass(slots=True)
class Changes:
    """Collects what a person changed between two turns.

    Attributes:
        causes: What was done, in order, as the next turn's reason names it.
        left_branch: The cache may hold a branch that was left: it is stashed, not dropped.
    """

    causes: tuple[str, ...] = ()
    left_branch: bool = False

    @property
    def cause(self) -> str:
        """All causes, each once."""
        return ", ".join(dict.fromkeys(filter(None, self.causes)))

    def note(self, cause: str) -> None:
        """Adds what was done last."""
        self.causes = (*self.causes, cause)

    def take(self) -> "Changes":
        """Hands over what was collected, and begins anew."""
        taken = Changes(self.causes, self.left_branch)
        self.causes, self.left_branch = (), False
        return taken

    def give_back(self, taken: "Changes") -> None:
        """Puts back in front what a turn took that was not kept."""
        self.causes = (*taken.causes, *self.causes)
        self.left_branch = self.left_branch or taken.left_branch
