"""How long the chat takes to draw its prompt, to a script with a bare prompt-toolkit prompt.

Both run in a pseudo-terminal, in turn (A B A B), and tell themselves what they took, from the start
of Python until the first drawing: seconds and processor time. Python keeps the bytecode of what it
imports, as it does on a person's machine. Prints the fastest and the median of each, their ratios,
and JSON as the last line; exits with 1 where the median of processor time misses the limit.
"""

import argparse
import fcntl
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1.3
# Leaves after the first drawing. The chat has prompt-toolkit imported when it gets there, so the
# hook is set where its own prompt is imported.
HOOK = """
import os, sys, time

def tell_when_drawn():
    from prompt_toolkit.renderer import Renderer
    render = Renderer.render

    def draw(*args, **kwargs):
        render(*args, **kwargs)
        os.write(told, f"{time.monotonic() - started} {time.process_time()}".encode())
        os._exit(0)

    Renderer.render = draw

class Hook:
    def find_spec(self, name, *args):
        if name == "mlxchat.cli.repl":
            tell_when_drawn()

told, started = int(sys.argv.pop()), float(sys.argv.pop())
"""
SCRIPTS = {
    "bare": "from prompt_toolkit import PromptSession\n"
    "tell_when_drawn()\nPromptSession().prompt('> ')\n",
    "mlxchat": "sys.meta_path.insert(0, Hook())\nfrom mlxchat.cli.main import main\nmain()\n",
}


def time_to_prompt(script: str, home: str) -> tuple[float, float]:
    """Returns seconds and processor seconds until a script has drawn its prompt."""
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    answer, told = os.pipe()
    environment = {
        **os.environ,
        "MLXCHAT_HOME": f"{home}/home",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": f"{home}/bytecode",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HOOK + script, str(time.monotonic()), str(told)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        pass_fds=[told],
        start_new_session=True,
    )
    os.close(told)
    seconds, work_s = map(float, os.read(answer, 100).split())
    process.wait()
    for descriptor in (keyboard, terminal, answer):
        os.close(descriptor)
    return seconds, work_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in SCRIPTS}
    with tempfile.TemporaryDirectory() as home:
        for round_ in range(args.rounds + 1):
            for name, script in SCRIPTS.items():
                found = time_to_prompt(script, home)
                if round_:  # the first round writes the bytecode
                    times[name].append(found)
    figures = {}
    for place, clock in enumerate(("wall", "processor")):
        for judge in (min, statistics.median):
            bare, ours = (judge([t[place] for t in times[name]]) for name in SCRIPTS)
            figures[f"{clock} {judge.__name__}"] = ours / bare
            print(
                f"{clock} time, {judge.__name__}: mlxchat {1e3 * ours:.0f} ms,"
                f" bare {1e3 * bare:.0f} ms, ratio {ours / bare:.2f}"
            )
    print(json.dumps(figures))
    return int(figures["processor median"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
