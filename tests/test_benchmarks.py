"""The logic of the benchmarks: statistics, limits, scaling, tables. Nothing here asserts on a time."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks import common, convert_vgg16, fcn_vs_windows, render, windows_worker
from benchmarks.windows_worker import Cell, Sweep
from convrewrite import model_io
from convrewrite.engine.rewrite import run_pass
from convrewrite.passes.fcn import Fcn
from convrewrite.timing.statistics import Estimate, estimate, geometric_mean, ratios, tells_apart

ROOT = Path(__file__).resolve().parent.parent

LENET_WINDOW = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
LENET_5X5 = 44 * 44 * 6 * 25 + 18 * 18 * 16 * 6 * 25 + 25 * (400 * 120 + 120 * 84 + 84 * 10)
"""Multiply-accumulates of LeNet-5 on 32x32, and of the pass over 5x5 windows (48x48), counted by hand."""


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def steady(value: float, count: int = 9) -> Estimate:
    return Estimate(value, value, value, count)


def a_cell(model: str = "vgg16", speedup: float = 16.0, limit: float = 16.0) -> Cell:
    return Cell(
        model=model,
        positions=9,
        image=(480, 480),
        windows=81,
        fcn=steady(0.5),
        sliding=steady(0.5 * speedup),
        batch=8,
        by_batch={"1": 9.0, "8": 8.0, "32": 8.5},
        timed=3,
        batches=10,
        speedup=Estimate(speedup, speedup * 0.98, speedup * 1.02, 9),
        again=Estimate(1.0, 0.99, 1.02, 9),
        limit=limit,
        equivalence="native-size",
        error=1e-6,
        compared=1,
    )


# Statistics


def test_the_interval_of_few_samples_is_their_range() -> None:
    assert estimate([3.0, 1.0, 2.0]) == Estimate(2.0, 1.0, 3.0, 3)
    assert estimate([5.0]) == Estimate(5.0, 5.0, 5.0, 1)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (50, 18), (100, 40)])
def test_the_interval_follows_the_published_order_statistics(count: int, rank: int) -> None:
    samples = [float(i) for i in range(1, count + 1)]
    random.Random(0).shuffle(samples)
    found = estimate(samples)
    assert (found.low, found.high) == (rank, count + 1 - rank)
    assert found.median == statistics.median(samples)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [estimate(rng.exponential(size=21).tolist()) for _ in range(2000)]
    assert np.mean([e.low <= math.log(2) <= e.high for e in found]) >= 0.94


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        estimate([])


def test_a_slow_round_cancels_in_the_ratios() -> None:
    assert ratios([10.0, 30.0], [5.0, 15.0]) == [2.0, 2.0]


def test_the_mean_of_ratios_is_geometric() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


@pytest.mark.parametrize(("ratio", "told"), [(1.05, False), (0.93, False), (1.08, False), (1.2, True), (0.8, True)])
def test_a_ratio_inside_the_spread_is_no_difference(ratio: float, told: bool) -> None:
    assert tells_apart(ratio, Estimate(1.0, 0.92, 1.06, 9)) is told


# Timing


def test_contestants_take_turns_until_the_time_is_up() -> None:
    clock = Clock()
    order: list[str] = []

    def contestant(name: str, seconds: float) -> common.Measure:
        def measure() -> float:
            clock.now += seconds
            order.append(name)
            return seconds

        return measure

    samples = common.interleave({"a": contestant("a", 1.0), "b": contestant("b", 2.0)}, 5.0, 1, clock)
    assert "".join(order) == "abab"
    assert samples == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_the_least_number_of_rounds_is_kept_however_long_it_takes() -> None:
    assert common.interleave({"a": lambda: 1.0}, 0.0, 4, Clock()) == {"a": [1.0] * 4}


def test_a_short_call_is_repeated_after_an_untimed_one() -> None:
    clock = Clock()
    calls: list[float] = []

    def call() -> None:
        calls.append(clock.now)
        clock.now += 0.25 if len(calls) == 1 else 0.0625  # the first one is cold

    measure = common.repeated(call, at_least=0.25, prime_below=0.125, clock=clock)
    assert measure() == 0.0625
    assert len(calls) == 1 + 4


def test_a_long_call_is_primed_only_the_first_time() -> None:
    clock = Clock()
    measure = common.repeated(clock.work(2.0), at_least=0.02, clock=clock)
    assert [measure(), measure()] == [2.0, 2.0]
    assert clock.now == 6.0


# The sweep over all windows


def test_a_sweep_counts_the_last_smaller_batch() -> None:
    assert Sweep.over(81, 32, 0.001, 10.0) == Sweep(full=2, rest=17, timed=2)
    assert Sweep.over(25, 32, 0.001, 10.0) == Sweep(full=0, rest=25, timed=0)
    assert Sweep.over(64, 32, 0.001, 10.0) == Sweep(full=2, rest=0, timed=2)


def test_a_long_sweep_is_a_sample_of_three_batches_or_more() -> None:
    assert Sweep.over(289, 8, 2.0, 1.0) == Sweep(full=36, rest=1, timed=3)
    assert Sweep.over(289, 8, 0.1, 1.0) == Sweep(full=36, rest=1, timed=10)


def test_a_sample_is_scaled_and_the_rest_is_added_once() -> None:
    sweep = Sweep(full=36, rest=1, timed=3)
    assert sweep.scaled(timed_seconds=6.0, rest_seconds=0.5) == 72.5
    assert Sweep(full=0, rest=25, timed=0).scaled(0.0, 3.0) == 3.0


def test_a_full_sweep_classifies_every_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = np.arange(11.0).reshape(11, 1)
    seen: list[list[float]] = []

    def caller(session: object, feed: windows_worker.Array) -> Callable[[], None]:
        return lambda: seen.append(feed[:, 0].tolist())

    monkeypatch.setattr(windows_worker, "_caller", caller)
    monkeypatch.setattr(common, "PRIME_BELOW", 0.0)
    sweep = Sweep.over(11, 4, 1e-9, 1.0)
    windows_worker._sweeping(None, crops, 4, sweep)()
    one_sweep = seen[1:4]  # the first call is the untimed one
    assert sorted(itertools.chain(*one_sweep)) == list(range(11))


# The limit


def test_the_limit_is_the_hand_counted_one(tmp_path: Path) -> None:
    original, converted = tmp_path / "a.onnx", tmp_path / "b.onnx"
    common.save_model("lenet5", original)
    model = model_io.load(original)
    result = run_pass(Fcn(), model.graph)
    model_io.save(replace(model, graph=result.graph), converted)
    window = windows_worker.macs(original, (1, 1, 32, 32), "image")
    whole = windows_worker.macs(converted, (1, 1, 48, 48), "image")
    assert (window, whole) == (LENET_WINDOW, LENET_5X5)
    assert windows_worker.flop_limit(window, 25, whole) == pytest.approx(4.0980, abs=1e-4)


def test_outputs_that_are_not_finite_never_agree() -> None:
    broken = np.array([np.nan, 1.0])
    assert not replace(a_cell(), error=windows_worker.relative_error(broken, broken)).correct
    assert windows_worker.relative_error(np.array([1.0, 2.1]), np.array([1.0, 2.0])) == pytest.approx(0.05)


# Results and tables


def test_a_cell_survives_json() -> None:
    cell = a_cell()
    assert Cell.from_dict(json.loads(json.dumps(asdict(cell)))) == cell


def test_goals_are_judged_by_the_smallest_cell_and_the_mean() -> None:
    cells = [a_cell(speedup=16.0), a_cell("lenet5", speedup=12.8)]
    figures = fcn_vs_windows.summary(cells)
    assert figures["smallest"] == pytest.approx(0.8)
    assert figures["smallest_cell"] == "LeNet-5, 9x9"
    assert figures["geometric_mean"] == pytest.approx(math.sqrt(0.8))
    assert [line.rpartition(": ")[2] for line in fcn_vs_windows.goals(figures)] == ["missed).", "missed)."]
    good = fcn_vs_windows.summary([a_cell()])
    assert good["mean_goal_met"]
    assert good["cell_goal_met"]


def test_a_row_marks_a_sample_and_a_speedup_that_is_none() -> None:
    sampled = fcn_vs_windows.row(a_cell())
    assert sampled[:6] == ["VGG-16", "9x9", "480x480", "500.00", "8000.0*", "8"]
    assert sampled[6:9] == ["16.0x (15.7 to 16.3)", "16.0x", "1.00"]
    whole = fcn_vs_windows.row(replace(a_cell(speedup=1.0), timed=10))
    assert whole[4] == "500.0"
    assert whole[6].endswith("(no difference)")


def test_a_table_is_aligned() -> None:
    lines = common.table(["a", "b"], [["long", "1"], ["x", "22222"]]).splitlines()
    assert lines == ["| a    |     b |", "| ---- | ----: |", "| long |     1 |", "| x    | 22222 |"]
    with pytest.raises(ValueError, match="does not have the 2 cells"):
        common.table(["a", "b"], [["1"]])


def test_the_markdown_says_what_was_sampled_and_where_it_ran() -> None:
    data = fcn_vs_windows.report([a_cell()], date="2026-01-31")
    text = fcn_vs_windows.markdown(data)
    assert "whole batches" in text
    assert common.cpu_name() in text
    assert "2026-01-31" in text
    whole = fcn_vs_windows.report([replace(a_cell(), timed=10)])
    assert "whole batches" not in fcn_vs_windows.markdown(whole)


def test_the_conversion_is_judged_by_time_and_memory() -> None:
    seconds = {"copy": [2.0, 2.2, 2.1], "convert": [1.0, 1.1, 1.05], "again": [2.1, 2.1, 2.1]}
    data = convert_vgg16.report(seconds, {"copy": [100, 100], "convert": [150, 150], "again": [100, 100]}, 1)
    assert data["time_ratio"]["median"] == pytest.approx(0.5)
    assert data["memory_ratio"] == pytest.approx(1.5)
    assert (data["time_goal_met"], data["memory_goal_met"]) == (True, False)
    assert [common.verdict(data[key]) in line for key, line in zip(
        ("time_goal_met", "memory_goal_met"), convert_vgg16.goals(data), strict=True
    )] == [True, True]  # fmt: skip


def test_the_processor_is_named_as_the_system_names_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Processor: 2\n")
    assert common.cpu_name(cpuinfo) == "A Processor: 2"
    assert common.cpu_name(tmp_path / "none")


def test_render_fills_what_stands_between_the_markers(tmp_path: Path) -> None:
    text = "before\n<!-- benchmark: fcn_vs_windows -->\nold\n<!-- end -->\nafter\n"
    empty = render.filled(text, tmp_path)
    assert empty == f"before\n<!-- benchmark: fcn_vs_windows -->\n\n{render.NOT_YET}\n\n<!-- end -->\nafter\n"
    data = fcn_vs_windows.report([a_cell()])
    (tmp_path / "fcn_vs_windows.json").write_text(json.dumps(data))
    full = render.filled(text, tmp_path)
    assert fcn_vs_windows.markdown(data) in full
    assert render.filled(full, tmp_path) == full
    (tmp_path / "fcn_vs_windows.json").write_text(json.dumps({**data, "rehearsal": True}))
    with pytest.raises(SystemExit, match="rehearsal"):
        render.filled(text, tmp_path)


def test_render_knows_no_other_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no benchmark 'other'"):
        render.filled("<!-- benchmark: other -->\n<!-- end -->", tmp_path)


@pytest.mark.parametrize("path", render.documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_tables_in_the_repository_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert render.filled(text) == text, f"run: python -m benchmarks.render {path.relative_to(ROOT)}"


# For real, in small


def test_a_rehearsal_of_the_windows_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "result.json"
    arguments = ["--quick", "--seconds", "0.2", "--markdown", "--out", str(out), "--folder", str(tmp_path)]
    assert fcn_vs_windows.main([*arguments, "--date", "2026-01-31"]) == 0
    data = json.loads(out.read_text())
    (cell,) = (Cell.from_dict(cell) for cell in data["cells"])
    assert (cell.model, cell.positions, cell.image, cell.windows) == ("lenet5", 5, (48, 48), 25)
    assert cell.limit == pytest.approx(25 * LENET_WINDOW / LENET_5X5)
    assert (cell.equivalence, cell.compared, cell.correct) == ("windows", 4, True)
    assert (data["rehearsal"], data["date"]) == (True, "2026-01-31")
    assert "share of limit" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [out.parent]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs os.wait4")
def test_a_rehearsal_of_the_conversion_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert convert_vgg16.main(["--quick", "--out", str(out), "--folder", str(tmp_path), "--markdown"]) == 0
    data = json.loads(out.read_text())
    assert data["rehearsal"]
    assert data["seconds"]["convert"]["count"] == 3
    assert all(peak["median"] > data["model_bytes"] for peak in data["peak_bytes"].values())
    assert "an eighth of its channels" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


def test_a_failing_child_is_shown_with_its_words() -> None:
    with pytest.raises(SystemExit, match=r"exit code 1:\n.*on purpose"):
        common.run_quietly([sys.executable, "-c", "raise SystemExit('on purpose')"])


@pytest.mark.parametrize("name", ["class_map", "pixel_map"])
def test_the_pictures_of_the_readme_can_be_made(tmp_path: Path, name: str) -> None:
    committed, made = ROOT / "docs" / "figures" / f"{name}.png", tmp_path / f"{name}.png"
    common.run_quietly([sys.executable, str(committed.with_name(f"make_{name}.py")), "--out", str(made)])
    sizes = [path.read_bytes()[16:24] for path in (committed, made)]  # width and height in a PNG's header
    assert sizes[0] == sizes[1]
    assert max(committed.stat().st_size, made.stat().st_size) < 200_000
