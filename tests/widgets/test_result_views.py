"""SweepView and TrainingView: what they show is what was measured, and they follow a run."""

import json
import time
from pathlib import Path

import pytest

from aotoolkit.evals.statistics import Estimate
from aotoolkit.evals.sweep import Setting, SweepCell, SweepResult
from aotoolkit.widgets import SweepView, TrainingView

HOSTILE = "<script>alert(1)</script>"


def cell(layer: int, share: float, replies: tuple[str, ...]) -> SweepCell:
    right = Estimate(share, share - 0.1, share + 0.1, 2)
    without = Estimate(0.0, 0.0, 0.0, 2)
    return SweepCell(
        setting=Setting(layers=(layer,), window="all", coefficient=1.0, temperature=0.0),
        num_examples=2,
        exact_match=right,
        word_match=right,
        exact_match_without=without,
        word_match_without=without,
        exact_match_gain=right,
        word_match_gain=right,
        replies=replies,
        replies_without=("a guess", HOSTILE),
    )


@pytest.fixture
def result() -> SweepResult:
    return SweepResult(
        cells=(cell(2, 0.5, ("yes", "red")), cell(4, 0.9, ("yes", HOSTILE))),
        match="exact",
        answers=("yes", HOSTILE),
        groups=(0, 1),
        identity={},
    )


def plotly_of(box) -> dict:
    return box.outputs[0]["data"]["application/vnd.plotly.v1+json"]


def test_a_sweep_shows_its_heatmap_and_the_best_settings_replies(result, tmp_path: Path):
    view = SweepView(result)
    figure = plotly_of(view.children[2])
    assert figure["data"][0]["type"] == "heatmap"
    assert view.cell is result.best
    assert view.chosen.options[0][0].startswith("layer 4"), "the best stands first"
    assert "0.90" in view._replies.value
    view.choose(result.cells[0].setting)
    assert view.cell is result.cells[0]
    assert "red" in view._replies.value
    for shown in (view._replies.value, view.snapshot().data, json.dumps(view.children[2].outputs)):
        assert "<script" not in shown
    page = view.save_html(tmp_path / "sweep.html").read_text()
    assert HOSTILE not in page
    assert "Plotly.newPlot" in page


def write(folder: Path, last: int) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{"step": step, "loss": 5.0 - step} for step in range(1, last + 1)]
    (folder / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = {"n": 8, "loss": 2.0, "exact_match": 0.5, "auc": None}
    without = {"loss_without": 3.0, "exact_match_without": 0.1, "auc_without": None}
    held_out = {"step": last, **figures, **without, "sources": {"words": figures | without}}
    (folder / "validation.jsonl").write_text(json.dumps(held_out) + "\n")


def test_curves_follow_a_run_that_begins_later(tmp_path: Path):
    folder = tmp_path / "<b>run"
    view = TrainingView(folder, every=0.05)
    assert "Waiting for the first row" in view._status.value
    assert "<b>" not in view._status.value
    write(folder, 2)
    deadline = time.monotonic() + 10
    while "Step 2" not in view._status.value and time.monotonic() < deadline:
        time.sleep(0.02)
    names = [trace["name"] for trace in plotly_of(view._box)["data"]]
    assert {"training loss", "all", "all, without activations"} <= set(names)
    write(folder, 3)
    while "Step 3" not in view._status.value and time.monotonic() < deadline:
        time.sleep(0.02)
    assert plotly_of(view._box)["data"][0]["x"][-1] == 3
    assert "without activations" in view.snapshot().data
    view.close()
    write(folder, 4)
    time.sleep(0.2)
    assert "Step 3" in view._status.value, "a closed view still reads"


def test_a_view_that_is_not_live_waits_to_be_told(tmp_path: Path):
    write(tmp_path, 1)
    view = TrainingView(tmp_path, every=0.02)
    view.live.value = False
    time.sleep(0.1)
    write(tmp_path, 2)
    time.sleep(0.1)
    assert "Step 1" in view._status.value
    assert view.refresh()
    assert "Step 2" in view._status.value
    assert not view.refresh(), "nothing is read again where nothing is new"
    page = view.save_html(tmp_path / "curves.html").read_text()
    assert "Plotly.newPlot" in page
    view.close()


def test_a_broken_row_is_said_and_the_view_goes_on(tmp_path: Path):
    write(tmp_path, 1)
    (tmp_path / "training.jsonl").write_text("{broken\n")
    view = TrainingView(tmp_path, every=60)
    assert "CorruptedFileError: " in view._status.value
    write(tmp_path, 2)
    view.refresh()
    assert "Step 2" in view._status.value
    view.close()
