"""What a person sets about a conversation while it goes on; it counts from the next turn on."""

from dataclasses import replace

from mlxchat.chat.options import ChatOptions, Steer
from mlxchat.chat.session_base import SessionBase
from mlxchat.engine.worker import JobContext


class SessionSettings(SessionBase):
    """The part of `Session` that takes other settings."""

    def set_system(self, text: str | None) -> None:
        """Sets the system prompt; it takes effect with the next turn."""
        self.conversation.system = text or None
        self._changes.note("/system")

    def set_thinking(self, think: bool | None) -> list[str]:
        """Turns thinking on or off from the next turn on; None is the template's own default.

        Returns:
            What the template had to say, such as that it has no switch.
        """
        return self._set_switches(replace(self.options, think=think))

    def end_thinking(self) -> None:
        """Ends the thinking of the answer that is being given, and asks for the answer proper."""
        if self._runner is not None:
            self._runner.ends_thinking.set()

    def set_steering(self, steers: tuple[Steer, ...]) -> None:
        """Adds steering vectors to the residual stream from the next turn on; none is plain.

        Loads the model first, since a vector must be of this very model.

        Raises:
            UsageError: A vector is not there, or was made on another model.
        """
        options = replace(self.options, steering=steers)

        def job(context: JobContext) -> None:
            runner = self._load_runner(context)
            runner.set_options(options)
            self.options = options
            self._changes.note("/steer")

        self._worker.run(job)
        if self.conversation.head is not None:
            self._settle_when_idle()

    def set_options(self, options: ChatOptions) -> list[str]:
        """Takes other options from the next turn on; system prompt and context limit stay.

        Returns:
            What the template had to say to its switches, where they changed.
        """
        old = self.options
        if (options.think, options.keep_thinking) != (old.think, old.keep_thinking):
            return self._set_switches(options)
        self.options = options
        if self._runner is not None:
            self._runner.set_sampling(options)  # no job: idle work goes on
        return []

    def _set_switches(self, options: ChatOptions) -> list[str]:
        cause = "/think" if options.think != self.options.think else "/set keep-thinking"
        self.options = options
        self._changes.note(cause)
        if self._runner is None:
            return []
        runner = self._runner
        return self._worker.run(lambda _: runner.set_options(options))
