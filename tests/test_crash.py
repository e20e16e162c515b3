"""The program is killed at random moments; nothing that it had shown is missing afterwards.

`scripts/crash_test` does the same for as long as one likes.
"""

import pytest
from crash import BUILT_IN, CrashTest


@pytest.fixture
def crashes(mlxchat_home):
    return CrashTest(mlxchat_home, seed=0)


def test_killed_while_it_talks(crashes):
    """Killed in a turn, between turns or at its exit, a piped chat leaves all that it showed."""
    for _ in range(11):
        crashes.run_piped()
    assert crashes.tally.num_killed >= 4
    assert crashes.tally.num_turns >= 10


def test_killed_after_a_json_line(crashes):
    """Each JSON line that was printed is a turn that is stored whole."""
    for _ in range(3):
        crashes.run_piped(as_json=True)


def test_killed_in_a_terminal(crashes):
    """The same in a real terminal."""
    for _ in range(3):
        crashes.run_terminal()


def test_killed_with_the_built_in_model(crashes):
    """The same with a real model: what was stored of its prompts is whole, and goes on exactly."""
    for as_json in (True, True, False, True):
        crashes.run_piped(BUILT_IN, as_json=as_json)
    tally = crashes.tally
    assert tally.num_files > 0
    assert tally.num_resumed == 4
    assert tally.num_reused > 0
