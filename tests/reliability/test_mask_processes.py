"""Masks taken off over several processes: the bits of one, also when a process is lost, and none is left behind."""

import hashlib
import os
import signal
from typing import Any

import numpy as np
import pytest

from aggregator_service.flow.sessions import mask_removal as removing
from aggregator_service.flow.sessions.mask_removal import mask_removal
from fl_protocol.masking.prg import Mask, remove_masks

MASKS = [Mask(hashlib.sha256(b"%d" % number).digest(), is_subtracted=number % 3 == 0) for number in range(7)]
SIZE, WINDOW = 100_003, 40_000


@pytest.fixture
def on_three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "WORTH_BYTES", 1)
    monkeypatch.setattr(removing, "num_cores", lambda: 3)


def vector(dtype: str) -> Any:
    return np.random.default_rng(0).integers(0, 2**31, SIZE).astype(dtype)


@pytest.mark.parametrize("fate", [None, signal.SIGKILL, signal.SIGSTOP], ids=["alive", "one dies", "one hangs"])
@pytest.mark.parametrize("dtype", ["u4", "u8"])
@pytest.mark.usefixtures("on_three_cores")
def test_several_processes_take_off_what_one_does(
    dtype: str, fate: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fate is signal.SIGSTOP:
        monkeypatch.setattr(removing, "ANSWER_SECONDS", 0.2)
    expected, sums = vector(dtype), vector(dtype)
    remove_masks(expected, MASKS)
    with mask_removal(MASKS, num_elements=SIZE, word_bytes=sums.itemsize) as removal:
        processes = [each.process for each in removal.processes]
        assert len(processes) == 2
        for first in range(0, SIZE, WINDOW):
            window = sums[first : first + WINDOW]
            if fate is not None and first == WINDOW:
                processes[0].send_signal(fate)
            removal.ask(first, window.size)
            removal.remove(window, first=first)
    np.testing.assert_array_equal(sums, expected)
    assert all(process.poll() is not None for process in processes)


@pytest.mark.usefixtures("on_three_cores")
def test_a_process_ends_with_the_server_that_asked_it() -> None:
    """A server that is killed closes its pipes, and nothing else."""
    with mask_removal(MASKS, num_elements=SIZE, word_bytes=4) as removal:
        one = removal.processes[0].process
        assert one.stdin is not None
        removal.ask(0, WINDOW)
        one.stdin.close()
        one.stdin = None
        assert one.stdout is not None
        assert len(one.stdout.read()) == 4 * WINDOW
        assert one.wait(timeout=30) == 0


def test_a_small_sum_starts_no_process() -> None:
    with mask_removal(MASKS, num_elements=10**6, word_bytes=4) as removal:
        assert (removal.processes, list(removal.own)) == ([], MASKS)
    assert removing.num_cores() <= (os.cpu_count() or 1)
