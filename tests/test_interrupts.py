"""Ctrl-C at forty random moments; `scripts/interrupt_test` presses it a thousand times."""

import pytest
from interrupts import InterruptTest
from tiny import KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_ctrl_c_at_any_moment(tmp_path, kind, seed):
    """Whatever Ctrl-C stops, the next turn answers as if it had never been pressed."""
    test = InterruptTest(tmp_path / "model", seed, kind)
    try:
        for _ in range(7):
            test.run()
    finally:
        test.close()
    assert test.tally.num_presses == 7
