"""The GPU benchmark's logic, on the CPU: sharing the time, saving, what is left out, and what goes wrong."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from convrewrite import pipeline
from convrewrite.engine.rewrite import Site
from convrewrite.errors import CheckFailed, Interrupted, UsageError
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.outcome import Outcome
from convrewrite.running import runtime
from convrewrite.timing import Bench, Missed
from convrewrite.verification.verdicts import Case, Verification
from gpu_results import cell, verified

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import fcn, separable, work
from benchmarks.gpu.budget import Budget, at_most
from benchmarks.gpu.traded import Traded
from benchmarks.gpu.work import CUT_OFF, NO_TIME, NOTHING_WRITTEN, Batch, Plan, run
from benchmarks.separable import Layer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_model_gets_its_share_of_what_is_left():
    clock = Clock()
    budget = Budget(end=500.0, clock=clock)
    budget.begin(1, 4)  # until 200
    assert budget.allows
    with budget.job():
        clock.now += 60
    assert not budget.allows  # one more of 60 would end at 220
    budget.begin(2, 3)  # 340 left: until 387
    assert budget.allows
    clock.now = 386.0
    assert budget.allows
    clock.now = 387.0
    assert not budget.allows
    assert not budget.over
    clock.now = 500.0
    budget.begin(1, 1)
    assert not budget.allows
    assert budget.over


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no alarm")
def test_what_hangs_is_cut_off_as_ctrl_c_does_it():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), at_most(0.05):
        time.sleep(10)
    with at_most(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert signal.getsignal(signal.SIGALRM) == before


def converted(*names: str) -> list[fcn.Converted]:
    return [fcn.Converted(name, (Batch(1), fcn.Windows(3)), width=0.0625) for name in names]


SMALL = Layer("spatial", 32, 3, 16, 14)


def traded(**changes) -> Traded:
    return replace(Traded(Separable(tol=1e-5), "layers", SMALL.label, SMALL.model), **changes)


def plan(folder: Path, **changes) -> Plan:
    made = Plan(
        provider="cpu",
        tf32=False,
        seconds=0.05,
        sets=1,
        works=converted("mobilenet_v1", "alexnet"),
        folder=folder,
        target=folder / "device.json",
        budget=Budget(float("inf")),
        report={"complete": False, "models": []},
    )
    return replace(made, **changes)


def saved(made: Plan) -> dict:
    return json.loads(made.target.read_text())


def reasons(entry: dict) -> dict[str, str]:
    return {missed["job"]: missed["reason"] for missed in entry["missed"]}


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """Every measurement gives one cell at once; `calls` are the arguments, and what was saved before."""
    calls: list[dict] = []

    def bench(a, b, how):
        options = vars(how)
        file = tmp_path / "device.json"
        before = json.loads(file.read_text())["models"] if file.exists() else []
        calls.append({**options, "saved": sum(len(entry["cells"]) for entry in before)})
        windows = 9 if how.windows else 0
        size = (how.sizes or [(224, 224)])[0]
        found = cell(windows=windows, size=size, batch=options["batches"][0])
        return Bench(str(a), str(b), "cpu", False, 1, 0.1, (found,))

    monkeypatch.setattr(work, "bench", bench)
    return calls


def test_a_run_verifies_times_and_saves(tmp_path, faked):
    made = plan(tmp_path)
    assert run(made) == 0
    result = saved(made)
    assert result["complete"]
    assert [entry["model"] for entry in result["models"]] == ["mobilenet_v1", "alexnet"]
    for entry in result["models"]:
        assert entry["verify"]["verdict"] == "verified"
        assert [found["job"] for found in entry["cells"]] == ["native size, batch 1", "3x3 windows"]
        assert entry["missed"] == []
    assert [call.get("windows", False) for call in faked] == [False, True, False, True]
    assert [call["saved"] for call in faked] == [0, 1, 2, 3]
    assert faked[1]["sizes"] == ((288, 288),)
    assert [file.name for file in tmp_path.iterdir()] == ["device.json"]


def test_a_planted_layer_is_rewritten_verified_and_timed_at_both_batches(tmp_path, faked):
    made = plan(tmp_path, works=[traded()], tf32=True)
    assert run(made) == 0
    (entry,) = saved(made)["models"]
    assert (entry["pass"], entry["model"], entry["title"]) == ("separable", "layers", "32 channels, 3x3, rank 16")
    assert entry["verify"]["verdict"] == "verified"
    assert entry["sites"] == [1, 1]
    assert [(found["job"], found["batch"]) for found in entry["cells"]] == [
        ("native size, batch 1", 1),
        ("native size, batch 8", 8),
    ]
    want = {"provider": "cpu", "tf32": True, "seconds": 0.05, "sets": 1, "memory": False, "batches": (1,)}
    assert {name: faked[0][name] for name in want} == want
    assert [call["saved"] for call in faked] == [0, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["device.json"]


def test_a_trade_is_verified_on_the_provider_that_is_timed(tmp_path, monkeypatch):
    asked = []

    def trade(source, target, pass_, options):
        asked.append((options.provider, options.verify, options.accept))
        return Outcome("separable", "cuda", "failed", error=CheckFailed("stop here"))

    monkeypatch.setattr(pipeline, "trade", trade)
    assert run(plan(tmp_path, provider="cuda", works=[traded()])) == 1
    assert asked == [("cuda", True, "smaller")]


def test_a_pass_that_finds_nothing_is_an_error_and_is_not_timed(tmp_path, faked):
    made = plan(tmp_path, works=[traded(rewrite=Separable(tol=1e-5, form="depthwise")), traded()])
    assert run(made) == 1
    first, second = saved(made)["models"]
    assert first["error"].startswith("the pass did not find what the model holds: nothing to do")
    assert first["cells"] == []
    assert reasons(first).keys() == {"native size, batch 1", "native size, batch 8"}
    assert len(second["cells"]) == 2


def test_what_failed_its_verification_was_not_written_and_is_not_timed(tmp_path, faked, monkeypatch):
    bad = Verification((Case("the original with the new kernels", "y", status="failed", note="wrong"),))
    site = Site("separable", "y", "Conv", "rewritten")

    def trade(source, target, pass_, options):
        return Outcome("separable", "cpu", "failed", None, None, (site,), None, bad, error=CheckFailed(bad.message()))

    monkeypatch.setattr(pipeline, "trade", trade)
    made = plan(tmp_path, works=[traded()])
    assert run(made) == 1
    (entry,) = saved(made)["models"]
    assert entry["verify"]["verdict"] == "failed"
    assert set(reasons(entry).values()) == {NOTHING_WRITTEN}
    assert len(entry["missed"]) == 2
    assert faked == []


@dataclass(frozen=True)
class Slow(fcn.Converted):
    """Making and verifying it takes `seconds` of the clock."""

    clock: Clock = field(default_factory=Clock)
    seconds: float = 0.0

    def make(self, original, rewritten, provider):
        outcome = super().make(original, rewritten, provider)
        self.clock.now += self.seconds
        return outcome


def slow(clock: Clock, seconds: float) -> Slow:
    return Slow("mobilenet_v1", (Batch(1), fcn.Windows(3)), width=0.0625, clock=clock, seconds=seconds)


def test_a_model_whose_share_went_into_its_verification_is_not_timed(tmp_path, faked):
    clock = Clock()
    works = [slow(clock, 60.0), slow(clock, 30.0)]  # half of 100, then all of the 40 that are left
    made = plan(tmp_path, works=works, budget=Budget(clock.now + 100.0, clock))
    assert run(made) == 0
    first, second = saved(made)["models"]
    assert first["verify"]["passed"]
    assert reasons(first) == {"native size, batch 1": NO_TIME, "3x3 windows": NO_TIME}
    assert len(second["cells"]) == 2


def test_what_comes_after_the_end_is_left_out_and_said_to_be(tmp_path, faked):
    clock = Clock()
    works = [slow(clock, 100.0), traded()]
    made = plan(tmp_path, works=works, budget=Budget(clock.now + 100.0, clock))
    assert run(made) == 0
    _, second = saved(made)["models"]
    assert second["verify"] is None
    assert reasons(second) == {"native size, batch 1": NO_TIME, "native size, batch 8": NO_TIME}
    assert saved(made)["complete"]
    assert faked == []


def test_a_failing_verification_is_exit_1_and_the_others_go_on(tmp_path, faked, monkeypatch):
    real = pipeline.compare
    bad = Verification((Case("native size", "prob", status="failed", note="wrong"),))
    found = [bad]

    def compare(a, b, options):
        outcome = real(a, b, options)
        return replace(outcome, verification=found.pop()) if found else outcome

    monkeypatch.setattr(pipeline, "compare", compare)
    made = plan(tmp_path)
    assert run(made) == 1
    assert [entry["verify"]["verdict"] for entry in saved(made)["models"]] == ["failed", "verified"]


def failing_first(monkeypatch, error: BaseException) -> None:
    """The first measurement raises; the others run out of memory."""
    errors = [error]

    def bench(a, b, how):
        if errors:
            raise errors.pop()
        return Bench(str(a), str(b), "", False, 1, 0.1, (), (Missed("3x3", "out of memory"),))

    monkeypatch.setattr(work, "bench", bench)


@pytest.mark.parametrize(
    ("error", "text"),
    [(UsageError("the provider died"), "the provider died"), (MemoryError("1 GB"), "MemoryError: 1 GB")],
)
def test_an_error_in_one_model_leaves_the_others(tmp_path, monkeypatch, error, text):
    failing_first(monkeypatch, error)
    made = plan(tmp_path)
    assert run(made) == 1
    first, second = saved(made)["models"]
    assert first["error"] == text
    assert len(first["missed"]) == 2
    assert second["error"] == ""
    assert reasons(second) == {"native size, batch 1": "out of memory", "3x3 windows": "out of memory"}


def test_another_provider_than_the_one_asked_for_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "bench", lambda a, b, how: Bench(str(a), str(b), "cuda", False, 1, 0.1, ()))
    made = plan(tmp_path, works=converted("mobilenet_v1"))
    assert run(made) == 1
    assert saved(made)["models"][0]["error"] == "it was timed on cuda, not on cpu"


def test_ctrl_c_keeps_what_was_measured_and_says_what_was_not(tmp_path, monkeypatch):
    def bench(a, b, how):
        return Bench(str(a), str(b), "cpu", False, 1, 0.1, (cell(complete=False),), error=Interrupted("interrupted"))

    monkeypatch.setattr(work, "bench", bench)
    made = plan(tmp_path)
    assert run(made) == 130
    result = saved(made)
    assert not result["complete"]
    first, second = result["models"]
    assert len(first["cells"]) == 1
    assert reasons(first) == {"3x3 windows": CUT_OFF}
    assert second["cells"] == []
    assert reasons(second) == {"native size, batch 1": CUT_OFF, "3x3 windows": CUT_OFF}


@pytest.mark.parametrize("verification", [None, verified(stopped=Interrupted("interrupted"))])
def test_ctrl_c_while_verifying_ends_the_run(tmp_path, faked, monkeypatch, verification):
    def trade(source, target, pass_, options):
        stopped = Outcome("separable", "cpu", "error", error=Interrupted("interrupted"))
        return replace(stopped, verification=verification)

    monkeypatch.setattr(pipeline, "trade", trade)
    made = plan(tmp_path, works=[traded(), traded()])
    assert run(made) == 130
    assert not saved(made)["complete"]
    assert [len(entry["missed"]) for entry in saved(made)["models"]] == [2, 2]
    assert faked == []


def test_fcn_comes_first_and_every_pass_has_its_part_of_the_time():
    works = command.selected(list(command.PASSES), None, quick=False)
    names = [one.pass_name for one in works]
    assert list(dict.fromkeys(names)) == ["fcn", "separable", "groups"]
    assert names == sorted(names, key=list(command.PASSES).index), "one after the other"
    total = sum(one.share for one in works)
    for name, least in {"fcn": 0.4, "separable": 0.4, "groups": 0.1}.items():
        assert least < sum(one.share for one in works if one.pass_name == name) / total < 0.6
    assert {one.model for one in works if one.pass_name == "fcn"} == set(fcn.MODELS)
    forms = {one.title for one in works if one.model == separable.LAYERS_MODEL}
    assert {"64 channels, depthwise 11x11, rank 1", "64 channels, 7x7, 2 x depthwise + pointwise"} <= forms


def test_passes_and_models_are_chosen():
    every = list(command.PASSES)
    assert {one.pass_name for one in command.selected(["separable"], None, quick=True)} == {"separable"}
    chosen = command.selected(every, ["vgg16"], quick=True)
    assert [(one.pass_name, one.title) for one in chosen] == [("fcn", "VGG-16"), ("separable", "VGG-16, half rank")]
    with pytest.raises(UsageError, match="separable has no model 'alexnet'; there are resnet18, layers, vgg16"):
        command.selected(["separable"], ["alexnet"], quick=True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--passes", "fcn,fold"], "there is no pass 'fold'; there are fcn, separable, groups"),
        (["--models", "vgg19"], "fcn, separable, groups has no model 'vgg19'"),
    ],
)
def test_a_wrong_choice_is_exit_2(tmp_path, capsys, words, text):
    try:
        code = command.main([*words, "--provider", "cpu", "--out", str(tmp_path)])
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_provider_that_is_not_there_ends_it_at_once(tmp_path, monkeypatch, capsys):
    def refuse(path, provider):
        raise UsageError(f"provider '{provider}' cannot be used here")

    monkeypatch.setattr(runtime, "open_session", refuse)
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "provider 'cuda' cannot be used here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_from_end_to_end(tmp_path, capsys):
    """The real thing on the CPU: one small model and the small layers, real measurements."""
    words = ["--provider", "cpu", "--quick", "--models", "mobilenet_v1", "layers", "--out", str(tmp_path)]
    assert command.main(words) == 0
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert report["rehearsal"]
    assert report["complete"]
    assert report["tf32"] is False
    first, *layers = report["models"]
    assert first["verify"]["nodes"]["rewritten"].keys() <= {"cpu"}
    assert len(first["cells"]) == 2
    assert [entry["sites"] for entry in layers] == [[1, 1]] * len(separable.QUICK_LAYERS)
    assert [[found["batch"] for found in entry["cells"]] for entry in layers] == [[1, 8]] * len(layers)
    full, factored = 14 * 14 * 32 * 32 * 9, 14 * 14 * (32 * 3 * 16 + 16 * 3 * 32)
    assert [found["macs"] for found in layers[0]["cells"]] == [[full, factored], [8 * full, 8 * factored]]
    assert {found["limit"] for found in layers[0]["cells"]} == {3.0}
    printed = capsys.readouterr().out
    assert command.main(["--render", str(file)]) == 0
    assert capsys.readouterr().out == printed
