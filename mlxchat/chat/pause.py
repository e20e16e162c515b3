"""A function that is called when nothing has happened for a while."""

import contextlib
import threading
from collections.abc import Callable


class AfterPause:
    """Calls a function when nothing has happened for a while.

    Args:
        pause_s: How long, in seconds.
        function: Called on a thread of its own.
    """

    def __init__(self, pause_s: float, function: Callable[[], object]) -> None:
        self._pause_s, self._function = pause_s, function
        self._timer: threading.Timer | None = None

    def restart(self) -> None:
        """Something has happened: the pause begins anew."""
        self.stop()
        self._timer = threading.Timer(self._pause_s, self._call)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Waits no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call(self) -> None:
        with contextlib.suppress(RuntimeError):  # the worker has just been closed
            self._function()
