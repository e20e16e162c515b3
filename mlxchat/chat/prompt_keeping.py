"""When prefixes are loaded from disk and stored there: before a turn, in idle time, on leaving.

Decides what is worth it and what a conversation allows; how it is done is `engine/`'s business.
Runs on the worker thread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlxchat.chat.template import Message
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.prompt_store import PromptStore, make_label
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.store_budget import Budget
from mlxchat.engine.stored_name import MIN_IDS, What
from mlxchat.engine.stored_prefix import StoredPrefixes, make_key
from mlxchat.engine.token_ids import count_common
from mlxchat.model.loader import LoadedModel

Check = Callable[[], None]


@dataclass(slots=True)
class _Saving:
    """A prefix that is being stored, with pauses for turns."""

    what: What
    end: int
    steps: Iterator[None]


def open_keeping(
    name: str,
    loaded: LoadedModel,
    prefix: PrefixCache,
    *,
    keeps_conversation: bool,
    max_gib: float | None = None,
) -> "PromptKeeping":
    """Opens the store for a loaded model.

    Args:
        name: The model's, for people.
        loaded: What was loaded.
        prefix: Its live sequence.
        keeps_conversation: Whether more than the system prompt is read and written.
        max_gib: What the store may take of the disk; None is the default.
    """
    key = make_key(loaded.fingerprint, loaded.model, prefix.cache.kv_bits)
    prefixes = StoredPrefixes(PromptStore(budget=Budget.of(max_gib)), key, name, prefix)
    return PromptKeeping(prefixes, keeps_conversation=keeps_conversation)


class PromptKeeping:
    """Loads and stores the prefixes of one conversation.

    Args:
        prefixes: Of the model's live sequence.
        keeps_conversation: Whether more than the system prompt is read and written.
    """

    def __init__(self, prefixes: StoredPrefixes, *, keeps_conversation: bool) -> None:
        self.prefixes = prefixes
        self.keeps_conversation = keeps_conversation
        self._was_loaded = False
        self._system: tuple[int, ...] = ()
        self._label = ""
        self._saving: _Saving | None = None

    @property
    def _kinds(self) -> tuple[What, ...]:
        return ("system", "conversation") if self.keeps_conversation else ("system",)

    def restore(
        self,
        token_ids: Sequence[int],
        plan: Plan,
        check: Check,
        *,
        leave: int = 1,
        keep_branch: bool = False,
    ) -> Plan:
        """Loads a stored prefix where it serves more ids than what is in memory.

        Args:
            token_ids: What the cache shall hold in the end.
            plan: Serves them from memory.
            check: Called between pieces; may raise to stop.
            leave: Ids that must be left to feed.
            keep_branch: What is left behind may be wanted again.

        Returns:
            The plan that starts behind what was loaded, or the same plan.
        """
        limit, at_least = len(token_ids) - leave, plan.start + MIN_IDS
        if limit < at_least:
            return plan
        start = self.prefixes.restore(
            token_ids[:limit],
            at_least=at_least,
            kinds=self._kinds,
            check=check,
            keep_branch=keep_branch,
        )
        if not start:
            return plan
        self._was_loaded = True
        marks = tuple(m for m in plan.marks if m > start)
        return Plan("load", start, start, start, marks=marks)

    def take_was_loaded(self) -> bool:
        """Says whether something was loaded since the last call, in idle time perhaps."""
        was_loaded, self._was_loaded = self._was_loaded, False
        return was_loaded

    def note(self, messages: Sequence[Message], token_ids: Sequence[int], system_end: int) -> None:
        """Takes in what a turn has read: from now on its system prompt can be stored.

        Args:
            messages: Of the prompt.
            token_ids: Of the prompt.
            system_end: How many ids the system prompt decides.
        """
        is_system = messages[0].role == "system"
        self._system = tuple(token_ids[:system_end]) if is_system else ()
        self._label = make_label(messages[0].content)

    def keep_system(self, check: Check) -> None:
        """Stores the system prompt, unless it is stored already."""
        held = self.prefixes.prefix.token_ids
        end = len(self._system)
        if end >= MIN_IDS and tuple(held[:end]) == self._system:
            self._keep(end, "system", check)

    def keep_conversation(self, target: Sequence[int], owner: str, check: Check) -> None:
        """Stores what the next turn will begin with, as far as it is held.

        Args:
            target: The ids with which the next prompt will begin.
            owner: Number of the conversation in the history.
            check: Called between pieces; what it raises leaves the rest for the next call.
        """
        if self.keeps_conversation:
            common = count_common(self.prefixes.prefix.token_ids, target)
            if common > len(self._system):
                self._keep(common, "conversation", check, owner)

    def _keep(self, wanted: int, what: What, check: Check, owner: str = "") -> None:
        end = self.prefixes.reachable(wanted)
        if what == "system" and end < wanted:
            return  # the mark was thinned out; it comes back with the next fresh prefill
        saving = self._saving
        if saving is None or (saving.what, saving.end) != (what, end):
            self.drop()
            saving = _Saving(what, end, self.prefixes.save(end, what, self._label, owner))
            self._saving = saving
        for _ in saving.steps:
            check()
        self._saving = None

    def rebind(self, key: str) -> None:
        """From now on keys and values are computed otherwise: others are stored and loaded."""
        self.drop()
        self.prefixes.key = key

    def drop(self) -> None:
        """Leaves what is half stored."""
        if self._saving is not None:
            self._saving.steps.close()  # type: ignore[attr-defined]  # it is a generator
            self._saving = None

    def distrust(self) -> None:
        """Removes what was loaded last: it has proved wrong."""
        self.drop()
        self.prefixes.remove_loaded()

    def take_notices(self) -> list[str]:
        """Returns what the person should hear since the last call."""
        notices = list(self.prefixes.store.notices)
        self.prefixes.store.notices.clear()
        return notices

    def finish(self, timeout_s: float) -> None:
        """Waits until what was stored is on the disk; on the main thread."""
        self.prefixes.wait(timeout_s)
