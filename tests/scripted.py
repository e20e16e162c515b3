"""The real session over a scripted model: no MLX, quick, for what is written while it talks.

`python tests/scripted.py` runs the real command line over it, for tests in a process of their own.
"""

import os
import time
from types import SimpleNamespace

from mlxchat.chat import session as session_module
from mlxchat.chat.conversation import Origin
from mlxchat.chat.draft import DraftCost
from mlxchat.chat.results import PrefillProgress, SessionInfo, TextDelta, TurnResult
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.chat.template import Message
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import MlxchatError, TemplateError

FINGERPRINT = "f" * 64


class ScriptedRunner:
    """Answers `you said: ...` word by word.

    `fail` raises, `crash` breaks, `think` reasons first, `slow` waits between words, `forbidden`
    is an answer that the template refuses. Pauses come from MLXCHAT_PAUSE_S.
    """

    num_cached = 0
    reuses = False
    ahead = SimpleNamespace(num_ids=0, estimate=lambda count, _: DraftCost(count, None, 0.0))
    idle = SimpleNamespace(settle=lambda *_, **__: None, keep_prompts=lambda *_, **__: None)

    def __init__(self, fingerprint=FINGERPRINT):
        self.fingerprint = fingerprint
        self.keeping = SimpleNamespace(finish=lambda timeout_s: None, take_notices=list)
        self.pause_s = float(os.environ.get("MLXCHAT_PAUSE_S", "0"))
        self.options = None
        self.prompts = []

    def set_options(self, options):
        self.options = options
        return []

    def run(self, conversation, request, context):
        from fakes import make_result

        question, cut_off = request.question, request.cut_off
        messages = conversation.messages()
        if question is not None:
            messages = [*messages, Message("user", question)]
        self.prompts.append(messages)
        text = messages[-1].content
        first = text.split()[0]
        context.emit(PrefillProgress(1, 2))
        if first == "fail":
            raise MlxchatError("this message fails; send another")
        if first == "crash":
            raise ValueError("a bug")
        reasoning = (
            self._say(context, "let me see ", "reasoning", first) if first == "think" else None
        )
        begun = "" if cut_off is None else cut_off.message.content
        rest = f"you said: {text}".removeprefix(begun)
        answer = begun + self._say(context, rest, "answer", first)
        is_stopped = context.cancelled
        if is_stopped and not answer:
            raise JobCancelledError
        if first == "forbidden":
            raise TemplateError("the template refuses this; say something else")
        if question is not None:
            conversation.append(messages[-1])
        ids = tuple(ord(letter) for letter in answer)
        stop_reason = "user_cancelled" if is_stopped else "eos_token"
        origin = Origin(self.fingerprint, stop_reason, ids if is_stopped else ())
        conversation.append(Message("assistant", answer, reasoning, content_ids=ids), origin)
        return make_result(
            answer,
            model="scripted",
            reasoning=reasoning,
            tokens=ids,
            stop_reason=stop_reason,
        )

    def _say(self, context, text, kind, first):
        said = ""
        for word in text.split(" "):
            piece = word if not said else f" {word}"
            if context.cancelled:
                break
            context.emit(TextDelta(piece, kind))
            said += piece
            if pause_s := 0.05 if first == "slow" else self.pause_s:
                time.sleep(pause_s)
        return said


class ScriptedSession(Session):
    """A session whose model is scripted."""

    fingerprint = FINGERPRINT

    def _load(self, context):
        if self.info is None:
            self._runner = ScriptedRunner(self.fingerprint)
            self._runner.set_options(self.options)
            name = self.model or "builtin"
            self.info = SessionInfo(
                name,
                "scripted",
                1,
                1,
                512,
                "none",
                self.model is None,
                0.0,
                source=name,
                commit="c0ffee",
                fingerprint=self.fingerprint,
            )
            if self.conversation.head is not None:
                self._drop_foreign_ids()
        return self.info


def main():
    """Runs the real command line over the scripted session."""
    from mlxchat.cli.main import main as run

    session_module.Session = ScriptedSession
    run()


__all__ = ["ChatOptions", "ScriptedSession", "TurnResult"]

if __name__ == "__main__":
    main()
