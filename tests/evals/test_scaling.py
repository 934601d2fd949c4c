"""Scaling results: runs become points with intervals, files that are damaged are named."""

import dataclasses
import json

import pytest

from aotoolkit.errors import CorruptedFileError, ScoreError
from aotoolkit.evals.scaling import (
    ScalingResult,
    ScalingRun,
    ScalingScore,
    scaling_point,
)


def scaling_run(base: str, examples: int, seed: int, *, right: int, loss: float) -> ScalingRun:
    """Ten documents with about one loss, and ten words of which `right` are named."""
    documents = [
        ScalingScore(
            scored="held_out",
            unit=f"document {i}",
            loss=loss + i / 100,
            exact=False,
            loss_without=3.0,
            exact_without=False,
        )
        for i in range(10)
    ]
    words = [
        ScalingScore(
            scored="word",
            unit=f"word {i}",
            loss=1.0,
            exact=i < right,
            loss_without=1.0,
            exact_without=False,
        )
        for i in range(10)
    ]
    parameters = {"small": 1_000, "large": 10_000}[base]
    return ScalingRun(
        base=base,
        parameters=parameters,
        examples=examples,
        seed=seed,
        scores=(*documents, *words),
    )


def scaling_result() -> ScalingResult:
    points = [
        scaling_point(
            [
                scaling_run(base, examples, seed, right=right + seed, loss=2.0 - right / 10)
                for seed in (0, 1)
            ]
        )
        for base, first in (("large", 2), ("small", 1))
        for examples, right in ((200, first + 4), (100, first))
    ]
    return ScalingResult.of(
        points, settings={"dialect": "latentqa"}, bases={"small": {"facts": 0.5}, "large": {}}
    )


def test_runs_become_points_in_order():
    result = scaling_result()
    assert [(p.base, p.examples) for p in result.points] == [
        ("small", 100),
        ("small", 200),
        ("large", 100),
        ("large", 200),
    ]
    assert result.base_names == ("small", "large")
    assert result.sizes == (100, 200)
    first = result.points[0]
    assert first.word.mean == pytest.approx(0.15)  # 1 and 2 of 10
    assert (first.word.n, first.word.unit, first.word.num_seeds) == (10, "word", 2)
    assert first.loss.mean == pytest.approx(1.9 + 0.045)
    assert (first.loss.n, first.loss.unit) == (10, "document")
    for point in result.points:
        for estimate in (point.loss, point.word):
            assert estimate.low < estimate.mean < estimate.high
    # None of ten named says little: the interval is not of width 0.
    assert first.word_without.low == 0
    assert first.word_without.high > 0.2


def test_it_is_read_as_it_was_saved(tmp_path):
    result = scaling_result()
    result.save(tmp_path)
    assert ScalingResult.load(tmp_path) == result
    run = scaling_run("small", 100, 0, right=3, loss=1.0)
    run.save(tmp_path / "run.json")
    assert ScalingRun.load(tmp_path / "run.json") == run


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"points": [{}], "settings": {}, "bases": {}}'])
def test_damaged_files_are_named(tmp_path, text):
    with pytest.raises(CorruptedFileError, match=r"scaling\.json"):
        ScalingResult.load(tmp_path)
    (tmp_path / "scaling.json").write_text(text)
    with pytest.raises(CorruptedFileError, match=r"scaling\.json"):
        ScalingResult.load(tmp_path)
    with pytest.raises(CorruptedFileError, match="is damaged"):
        ScalingRun.load(tmp_path / "scaling.json")


def test_one_seed_has_the_intervals_of_several_that_agree():
    """The faster bootstrap of one seed is no other."""
    one, two = (scaling_run("small", 100, seed, right=3, loss=1.0) for seed in (0, 1))
    alone, both = scaling_point([one]).loss, scaling_point([one, two]).loss
    assert alone.mean == both.mean
    assert (alone.low, alone.high) == pytest.approx((both.low, both.high), abs=0.004)
    assert (alone.n, alone.num_seeds, both.num_seeds) == (10, 1, 2)


def test_what_cannot_be_put_together():
    with pytest.raises(ScoreError, match="at least one run"):
        scaling_point([])
    one, two = (scaling_run("small", 100, seed, right=3, loss=1.0) for seed in (0, 1))
    with pytest.raises(ScoreError, match=r"\('small', 100\), \('small', 200\)"):
        scaling_point([one, dataclasses.replace(two, examples=200)])
    with pytest.raises(ScoreError):
        scaling_point([one, dataclasses.replace(two, scores=two.scores[1:])])


def test_the_report_is_json_with_intervals():
    report = json.loads(json.dumps(scaling_result().to_dict(), allow_nan=False))
    assert {"mean", "low", "high", "n", "unit"} <= set(report["points"][0]["word"])
