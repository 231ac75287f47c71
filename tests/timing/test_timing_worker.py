"""The process that times: every way in which it can end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import pytest

from convrewrite.errors import Interrupted
from convrewrite.timing import NO_DIFFERENCE, CellFailed
from helpers import bench

SWEEP: dict[str, Any] = {"sizes": [(64,), (128,), (256,)], "memory": False}


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


ALLOCATE = "say('error', exit_code=2, message='Failed to allocate memory for 9 bytes', remedy=None, ran=True); break"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("action", "reason"),
    [(KILL, "out of memory, most likely: its process was killed"), (ALLOCATE, "Failed to allocate memory for 9 bytes")],
)
def test_out_of_memory_keeps_the_sizes_that_ran(fake, any_size, action, reason):
    fake(action)
    result = bench(any_size, any_size, **SWEEP)
    assert [cell.label for cell in result.cells] == ["64x64, batch 1"]
    assert [(m.label, m.reason) for m in result.missed] == [
        ("128x128, batch 1", reason),
        ("256x256, batch 1", "not tried, since a smaller size ran out of memory"),
    ]
    with pytest.raises(
        CellFailed, match=r"could not measure 128x128, batch 1 \(and 1 more\): .*measured: 64x64"
    ) as got:
        result.check()
    assert got.value.exit_code == 2
    assert "not measured: 256x256" in str(result)
    assert result.to_dict()["missed"][0]["label"] == "128x128, batch 1"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", "its process was ended by SIGABRT"),
        ("print('boom', file=sys.stderr); sys.exit(3)", "its process ended with exit code 3 (boom)"),
        ("1 / 0", "its process ended with exit code 1 (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_dying_worker_costs_one_size(fake, any_size, action, reason):
    fake(action, after=2)
    result = bench(any_size, any_size, sizes=[(64,), (128,)], memory=False)
    assert [missed.reason for missed in result.missed] == [reason]
    assert [cell.complete for cell in result.cells] == [True, False], "two sets of the second were told"
    assert "128x128, batch 1: stopped after 2 sets, too few for a verdict" in str(result)
    assert result.cells[1].comparison.verdict == NO_DIFFERENCE


def test_a_line_that_was_cut_off_is_no_event(fake, any_size):
    fake("print('{\"event\": \"se', end='', flush=True); sys.exit(0)", after=5)
    assert [cell.comparison.sets for cell in bench(any_size, any_size, sizes=[(128,)], memory=False).cells] == [5]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_was_measured_and_ends_the_worker(fake, any_size, tmp_path):
    note = tmp_path / "pid"
    fake(f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)", after=5)

    def interrupt() -> None:
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    result = bench(any_size, any_size, **SWEEP)
    assert time.monotonic() - start < 30
    assert [(cell.label, cell.complete) for cell in result.cells] == [
        ("64x64, batch 1", True),
        ("128x128, batch 1", False),
    ]
    assert isinstance(result.error, Interrupted)
    assert str(result.error) == "interrupted; 1 of 3 sizes were measured"
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
