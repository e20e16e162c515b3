"""Why a turn reads ids again that were read before.

What the person changed is handed in as the cause; what else costs cached ids (a template that drops
thinking, a stop string, what settling lost) is remembered here from one turn to the next.
"""

from dataclasses import dataclass

from mlxchat.chat.results import Usage
from mlxchat.engine.reuse_plan import Plan

TEMPLATE = "the template"
_WORTH_TELLING = 32  # ids that were read again; fewer are what every turn begins with


@dataclass(slots=True)
class RereadReasons:
    """Remembers what has cost cached ids since the last turn.

    Attributes:
        own_cause: Why ids are lost where the person changed nothing.
        is_respelled: As the newest prompt says of the last answer: then that is why.
        settled: What the work in idle time found; empty where it lost nothing.
    """

    own_cause: str = TEMPLATE
    is_respelled: bool = False
    settled: str = ""

    def explain(self, plan: Plan, cause: str, num_earlier: int) -> str:
        """Returns why a turn reads more than its message.

        Args:
            plan: Of the turn.
            cause: What the person changed.
            num_earlier: Ids of the turns before the message.
        """
        is_behind = plan.start < num_earlier
        if plan.action == "load":
            return "no more was stored" if is_behind else ""
        if plan.action == "continue" and (self.settled or not is_behind):
            return self.settled
        if not plan.num_held:
            return f"{cause}: {plan.reason}" if cause and is_behind else plan.reason
        return f"{cause or self._find_own_cause()}: {plan.reason}"

    def _find_own_cause(self) -> str:
        return "the tokenizer" if self.is_respelled else self.own_cause

    def note_nothing_stored(self, cause: str) -> None:
        """A conversation of the history goes on, and all of it was read in idle time."""
        what = "no keys and values were stored, the text was read again"
        self.settled = f"{cause}: {what}" if cause else what

    def note_lost(self, num_ids: int, num_read: int, cause: str) -> None:
        """Settling lost ids of the last turn; where the person is the cause, the turn says so.

        Args:
            num_ids: How many.
            num_read: Ids that were read since, in their place and after them.
            cause: What the person changed.
        """
        note = f"{self._find_own_cause()} dropped or moved {num_ids} ids of the last turn"
        note += f"; {num_read} were read since" if num_read >= _WORTH_TELLING else ""
        self.settled = "" if cause else note


def format_reuse(usage: Usage, source: str, why: str) -> str:
    """Returns the line that says what of a prompt was reused, and why not more.

    Args:
        usage: Ids of the turn.
        source: Where the reused ones came from.
        why: As `RereadReasons.explain` says it.
    """
    where = " from disk" if source == "disk" else ""
    ahead = usage.typeahead_tokens
    typed = f" ({ahead} read while you typed)" if ahead else ""
    reason = f"reused {usage.cached_tokens}{where}{typed}, read {usage.prefill_tokens}"
    return f"{reason} ({why})" if why else reason
