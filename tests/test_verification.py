"""Verification: exact rewrites pass, each planted fault fails, and what says nothing is called vacuous.

The pairs are built by hand: a classifier and the fully convolutional form that a person would write for it.
"""

from __future__ import annotations

import json

import pytest

from verified_pairs import EXACT, pair


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT.keys())
def test_an_exact_conversion_is_verified(tmp_path, options):
    result = pair(**options).verify(tmp_path)
    assert result.verdict == "verified", result.message()
    assert result.passed
    assert result.message() == ""
    result.check()
    names = " | ".join(case.name for case in result.cases if case.status == "passed")
    assert ("native size" in names) == ("fixed" not in options)
    assert ("original's trunk and head at" if options.get("pad") else "every window of") in names
    assert (result.deviation is not None) == bool(options.get("pad"))
    if options.get("final", "Softmax"):
        assert any("(before " in case.output and case.status == "passed" for case in result.cases)
    assert ("cells past the last window" in names) == bool(options.get("slack"))
    skipped = [case for case in result.cases if case.status == "skipped"]
    assert len(skipped) == ("fixed" in options), skipped
    assert all(case.note for case in skipped)


def test_the_report_is_json_and_the_summary_readable(tmp_path):
    result = pair(pad=1).verify(tmp_path, samples=2, seed=5)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["verdict"] == "verified"
    assert report["passed"] is True
    assert {"name", "output", "error", "tolerance", "noise", "place", "figures", "status", "seed"} <= set(
        report["cases"][0]
    )
    assert report["cases"][0]["seed"] == 5
    text = str(result)
    assert "native size" in text
    assert "max error" in text
    assert "tolerance 1.0e-05" in text
    assert "a difference in meaning, not an error" in text
    assert result.deviation is not None
    assert result.deviation.error > 0.001
    assert 0.0 <= result.deviation.top1_agreement <= 1.0
    assert result.deviation.positions == 42  # up to twice the native size, 12 x 10


def test_padded_with_a_trunk_that_cannot_grow_uses_the_converted_features(tmp_path):
    result = pair(pad=1, baked=True).verify(tmp_path)
    assert result.passed, result.message()
    assert any("features of the converted model" in case.note for case in result.cases)


def test_a_check_that_cannot_run_is_skipped_with_its_reason(tmp_path):
    both = pair(pad=1, baked=True)
    for node in both.converted.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "renamed" if name == "features" else name
    result = both.verify(tmp_path)
    skipped = [case for case in result.cases if case.status == "skipped"]
    assert skipped
    assert all("no tensor 'features'" in case.note for case in skipped)
    assert "skipped" in str(result)
    result = pair(pad=1).verify(tmp_path, cut=())
    assert any(case.status == "skipped" and "cut" in case.note for case in result.cases)
