"""`scripts/mac_report`: what the file holds, what the person reads, and what Ctrl-C leaves."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "mac_report"

# In place of Python: says what it is asked, fails on the roofline, and waits on bench against.
PYTHON = """#!/bin/sh
echo "did $*"
case "$*" in
*--against*) [ -z "$WAITS" ] || { : >"$WAITS"; sleep 60; } ;;
*roofline*) echo "no such machine"; exit 3 ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with something in place of Python, in a process group of its own."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def start(*arguments, **environ):
        names = {"MLXCHAT_PYTHON": str(python), "WAITS": "", **environ}
        return subprocess.Popen(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env={**os.environ, **names},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def test_every_section_is_told_and_noted(start, tmp_path):
    """Each says what it does and how long the rest takes; one that fails leaves the others."""
    process = start("found.md")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "15 sections, " in said
    assert "MLXCHAT_REPORT_QUICK=1 leaves out what takes long." in said
    assert "[1 of 15, about " in said
    assert " left] Machine: what mlxchat finds here\n" in said
    assert "    FAILED (exit 3), " in said
    text = (tmp_path / "found.md").read_text()
    assert "| Machine | what mlxchat finds here | passed | " in text
    assert "| Roofline | shares of bandwidth and matmul rate | FAILED (exit 3) | " in text
    assert text.count("FAILED (exit 3)") == 2  # in the table, and above what it said
    assert "no such machine\n```" in text
    assert "| Prompt visible | the chat's start, to a bare prompt's | passed | " in text
    assert "did -m pytest -q -n auto tests/test_parity.py" in text


def test_a_quick_report_says_what_it_left_out(start, tmp_path):
    """What takes long stands in the table as left out."""
    process = start(MLXCHAT_REPORT_QUICK="1")
    said = process.communicate(timeout=60)[1]
    assert "6 sections, " in said
    text = (tmp_path / "mlxchat_report.md").read_text()
    assert text.count("left out (MLXCHAT_REPORT_QUICK)") == 9
    assert "bench_typing" not in text


def test_ctrl_c_keeps_what_there_is(start, tmp_path):
    """The section that was stopped is marked, with what it had said; those before are whole."""
    waits = tmp_path / "waits"
    process = start("found.md", WAITS=str(waits))
    for line in process.stderr:
        if "Built-in model against mlx-lm" in line:
            break
    while not waits.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.endswith(f"Stopped; {tmp_path / 'found.md'} holds what there is.\n")
    text = (tmp_path / "found.md").read_text()
    assert "| Built-in model | rates, first tokens, memory | passed | " in text
    assert "## Built-in model against mlx-lm: stopped by Ctrl-C" in text
    assert "did -m mlxchat bench --against mlx-lm -r 4" in text
    assert "Roofline" not in text


def test_a_file_that_cannot_be_written_is_one_line(start, tmp_path):
    """Nothing is measured for a report that has no place."""
    process = start("none/found.md")
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (
        1,
        f"Error: {tmp_path}/none/found.md cannot be written; name another FILE\n",
    )
