"""How a conversation gets into the history and comes back from it, and how another begins."""

import contextlib
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from mlxchat.chat.changes import Changes
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.session_base import SessionBase
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.history_record import Record, Restored


class SessionHistory(SessionBase):
    """The part of `Session` that keeps the conversation and changes it for another."""

    def prepare_history(self) -> None:
        """Opens the history in the background, so that the first turn finds it open."""
        if self.recorder is not None:
            self.recorder.prepare()

    @property
    def title(self) -> str | None:
        """What the person called the conversation."""
        return self.recorder.title if self.recorder is not None else None

    def set_title(self, title: str | None) -> None:
        """Names the conversation in the history.

        Raises:
            UsageError: It is not kept.
            HistoryError: It cannot be written.
        """
        if self.recorder is None:
            raise UsageError("this conversation is not kept; /save TITLE keeps it from now on")
        self.recorder.set_title(title)

    def save(self, title: str) -> int:
        """Names the conversation and keeps it from now on; returns its number in the history.

        Raises:
            UsageError: Nothing was said yet.
            HistoryError: It cannot be written.
        """
        if not self.conversation.nodes:
            raise UsageError("nothing was said yet; say something first")
        recorder = self.recorder
        if recorder is None:
            from mlxchat.chat.recorder import Recorder

            recorder = Recorder("chat")
            recorder.begin(self.conversation)
        recorder.set_title(title)
        if recorder.conversation_id is None:
            recorder.save(self.options, self.model_name)
        self.recorder = recorder
        self._use(replace(self.options, keeps_history=True))
        assert recorder.conversation_id is not None
        return recorder.conversation_id

    def record(self) -> "Record":
        """Returns the conversation as the history holds it, or would hold it."""
        from mlxchat.chat.history import History
        from mlxchat.chat.history_record import describe

        number = self.recorder.conversation_id if self.recorder is not None else None
        if self.recorder is None or number is None:
            return describe(self.conversation, self.model_name, self.options.now)
        with contextlib.closing(History(self.recorder.path)) as history:
            return history.record(number)

    def reset(self) -> None:
        """Begins another conversation, today, with the same system prompt; the old is history."""
        self._take(Conversation(self.conversation.system), "/reset")
        self._use(replace(self.options, now=datetime.now()))

    def restore(self, restored: "Restored") -> None:
        """Goes on with a conversation of the history.

        Its tree, system prompt, date and thinking switches come back, so that it renders to the
        ids it had; generated ids are dropped where another model made them.
        """
        record = restored.record
        options = replace(
            self.options,
            think=record.think,
            keep_thinking=record.keep_thinking,
            now=record.template_now or self.options.now,
        )
        self._take(restored.conversation, "/resume")
        if self.recorder is not None:
            self.recorder.adopt(restored)
        self._use(options)
        if self._runner is not None:
            self._drop_foreign_ids()
            self._settle_when_idle()

    def _take(self, conversation: Conversation, cause: str) -> None:
        self._worker.cancel_idle()
        if self.conversation.head is not None:  # the person may come back to it
            self._keep_prompts(whole=True, idle=True)
        self.conversation = conversation
        self.last, self._changes = None, Changes((cause,))
        if self.recorder is not None:
            self.recorder.begin(conversation)
