"""Figures hold the numbers that were measured, and read on light and on dark paper."""

import builtins
import dataclasses
import json

import eval_results as made
import pytest
import tiny

from aotoolkit import plots
from aotoolkit.errors import CorruptedFileError, EvalError, MissingExtraError, ModelNotFoundError
from aotoolkit.evals.metrics import reliability
from aotoolkit.evals.scaling import ScalingPoint, ScalingResult
from aotoolkit.evals.statistics import Estimate
from aotoolkit.evals.sweep import Setting, SweepCell, SweepResult

pytest.importorskip("plotly", reason="the extra `notebook` is not installed")


def cell(layers, window, coefficient, share, temperature=0.0):
    right = Estimate(share, share - 0.05, share + 0.05, 12)
    without = Estimate(0.125, 0.0, 0.2, 12)
    return SweepCell(
        setting=Setting(
            layers=layers, window=window, coefficient=coefficient, temperature=temperature
        ),
        num_examples=24,
        exact_match=right,
        exact_match_without=without,
        exact_match_gain=right,
        word_match=without,
        word_match_without=without,
        word_match_gain=without,
        replies=(),
        replies_without=(),
    )


SHARES = {
    ((2,), 1, 1.0): 0.25,
    ((2,), "all", 1.0): 0.5,
    ((2, 4), 1, 1.0): 0.375,
    ((2, 4), "all", 1.0): 0.625,
    ((2,), 1, 2.0): 0.1,
    ((2,), "all", 2.0): 0.75,
}


@pytest.fixture
def result():
    cells = tuple(cell(*where, share) for where, share in SHARES.items())
    return SweepResult(cells=cells, match="exact", answers=(), groups=(), identity={})


def test_a_heatmap_has_every_cell_in_its_place(result):
    figure = plots.sweep_heatmap(result)
    assert len(figure.data) == 2
    names = {1: "last 1", "all": "whole span"}
    for panel, coefficient in zip(figure.data, (1.0, 2.0), strict=True):
        assert list(panel.x) == ["last 1", "whole span"]
        assert list(panel.y) == ["2", "2+4"]
        for (layers, window, own), share in SHARES.items():
            if own == coefficient:
                row = list(panel.y).index("+".join(map(str, layers)))
                col = list(panel.x).index(names[window])
                assert panel.z[row][col] == share
                low, high = share - 0.05, share + 0.05
                expected = f"{share:.2f} [{low:.2f}, {high:.2f}]<br>without: 0.12"
                assert panel.text[row][col] == expected
    # Not measured with this coefficient.
    assert list(figure.data[1].z[1]) == [None, None]
    assert list(figure.data[1].text[1]) == ["", ""]
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["coefficient 1, greedy", "coefficient 2, greedy"]
    (frame,) = figure.layout.shapes
    assert (frame.xref, frame.x0, frame.x1, frame.y0, frame.y1) == ("x2", 0.5, 1.5, -0.5, 0.5)
    assert "24 examples in 12 groups" in figure.layout.title.text


def test_a_heatmap_shows_the_figure_that_decides(result):
    figure = plots.sweep_heatmap(dataclasses.replace(result, match="word"))
    assert figure.data[0].z[0][0] == 0.125
    assert figure.layout.title.text.startswith("Word match")


HOSTILE = "<b>topic</b> & <script>alert(1)</script>"


def row(step, loss, auc):
    def figures(scale, auc):
        return {
            "n": 10,
            "loss": loss * scale,
            "exact_match": 0.1 * step,
            "auc": auc,
            "loss_without": 3.0 * scale,
            "exact_match_without": 0.01,
            "auc_without": None if auc is None else 0.5,
        }

    sources = {HOSTILE: figures(2, auc), "words": figures(0.5, None)}
    return {"step": step, **figures(1, None), "sources": sources}


@pytest.fixture
def run_folder(tmp_path):
    rows = [row(2, 2.0, 0.6), row(4, 1.5, 0.8)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "training.jsonl").write_text(
        '{"step": 1, "loss": 4.0}\n{"step": 3, "loss": 2.5}\n{"step": 5, "lo'
    )
    return tmp_path


def lines(figure, axis):
    return {trace.name: trace for trace in figure.data if (trace.yaxis or "y") == axis}


def test_curves_are_those_of_the_run(run_folder):
    figure = plots.training_curves(run_folder)
    loss, exact, auc = (lines(figure, axis) for axis in ("y", "y2", "y3"))
    escaped = "&lt;b&gt;topic&lt;/b&gt; &amp; &lt;script&gt;alert(1)&lt;/script&gt;"
    named = ["all", escaped, "words"]
    pairs = {*named, *(f"{name}, without activations" for name in named)}
    assert set(loss) == {"training loss", *pairs}
    assert set(exact) == pairs
    assert set(auc) == {escaped, f"{escaped}, without activations"}
    assert (list(loss["training loss"].x), list(loss["training loss"].y)) == ([1, 3], [4.0, 2.5])
    assert (list(loss["all"].x), list(loss["all"].y)) == ([2, 4], [2.0, 1.5])
    assert list(loss["words"].y) == [1.0, 0.75]
    assert list(loss["words, without activations"].y) == [1.5, 1.5]
    assert list(exact["all, without activations"].y) == [0.01, 0.01]
    assert list(auc[escaped].y) == [0.6, 0.8]
    for name in named:
        pair = (loss[name], loss[f"{name}, without activations"])
        assert pair[0].line.color == pair[1].line.color
        assert [trace.line.dash for trace in pair] == ["solid", "dash"]
    assert len({loss[name].line.color for name in named}) == 3
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["held-out loss (nats a token)", "exact match", "AUC"]
    assert "<script>" not in figure.to_json()


def test_a_run_without_held_out_examples_has_its_training_loss(run_folder):
    (run_folder / "validation.jsonl").unlink()
    (trace,) = plots.training_curves(run_folder).data
    assert list(trace.y) == [4.0, 2.5]


def test_the_curves_of_a_real_run(tmp_path):
    from aotoolkit.data import Example
    from aotoolkit.tracing import TracedModel
    from aotoolkit.training import TrainingConfig, train_oracle

    model = TracedModel(tiny.model(num_layers=3), tiny.tokenizer())
    ids = model.encode("The blue water. A secret word.").token_ids
    examples = [
        Example(
            context_ids=ids,
            positions=(place,),
            layers=(1,),
            question="Is it blue?",
            answer=("Yes", "No")[place % 2],
            choices=("Yes", "No"),
            source="colour",
        )
        for place in range(4)
    ]
    settings = {"max_steps": 2, "batch_size": 2, "lora_rank": 2, "report_to": (), "eval_steps": 1}
    config = TrainingConfig(
        output_dir=tmp_path / "run", logging_steps=1, progress=False, **settings
    )
    trained = train_oracle(model, examples, config, validation=examples)
    figure = plots.training_curves(config.output_dir)
    assert trained.metrics is not None
    for axis, name in (("y", "loss"), ("y2", "exact_match"), ("y3", "auc")):
        drawn = lines(figure, axis)
        place = list(drawn["all"].x).index(trained.best_step)
        assert drawn["all"].y[place] == pytest.approx(getattr(trained.metrics.overall, name))
        without = drawn["all, without activations"].y[place]
        assert without == pytest.approx(getattr(trained.metrics.overall, f"{name}_without"))


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"validation\.jsonl"):
        plots.training_curves(tmp_path)
    (tmp_path / "validation.jsonl").write_text("{\n")
    with pytest.raises(CorruptedFileError, match=r"validation\.jsonl"):
        plots.training_curves(tmp_path)


def scaling_point(base, parameters, examples, word):
    def around(mean, n, unit):
        return Estimate(mean, mean - 0.05, mean + 0.1, n, unit)

    return ScalingPoint(
        base=base,
        parameters=parameters,
        examples=examples,
        loss=around(2 - word, 40, "document"),
        loss_without=around(2.0, 40, "document"),
        word=around(word, 12, "word"),
        word_without=around(0.05, 12, "word"),
    )


def test_scaling_curves_have_every_point_by_data_and_by_base():
    points = tuple(
        scaling_point(base, parameters, examples, word)
        for base, parameters, words in (
            ("<b>64</b>", 1000, (0.1, 0.2, 0.3)),
            ("128", 8000, (0.2, 0.3, 0.6)),
        )
        for examples, word in zip((100, 200, 400), words, strict=True)
    )
    figure = plots.scaling_curves(
        ScalingResult(points=points, settings={"dialect": HOSTILE}, bases={})
    )
    assert "<script>" not in figure.to_json()
    assert "<b>64" not in figure.to_json()
    by_data, by_base = (
        [trace for trace in figure.data if trace.yaxis == axis and trace.line.dash == "solid"]
        for axis in ("y3", "y4")
    )
    assert [(list(t.x), list(t.y)) for t in by_data] == [
        ([100, 200, 400], [0.1, 0.2, 0.3]),
        ([100, 200, 400], [0.2, 0.3, 0.6]),
    ]
    assert [(list(t.x), list(t.y)) for t in by_base] == [
        ([1000, 8000], [0.1, 0.2]),
        ([1000, 8000], [0.2, 0.3]),
        ([1000, 8000], [0.3, 0.6]),
    ]
    for trace in (*by_data, *by_base):
        assert list(trace.error_y.array) == pytest.approx([0.1] * len(trace.x))
        assert list(trace.error_y.arrayminus) == pytest.approx([0.05] * len(trace.x))
    without = [trace for trace in figure.data if trace.yaxis == "y3" and trace.line.dash == "dot"]
    assert [list(trace.y) for trace in without] == [[0.05] * 3] * 2
    assert "(n = 12, unit: word)" in by_data[0].customdata[0][0]
    assert "n = 40 documents, 12 words" in figure.layout.title.text


def test_without_plotly_the_extra_is_named(result, run_folder, monkeypatch):
    imported = builtins.__import__

    def without_plotly(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    with pytest.raises(MissingExtraError, match=r"aotoolkit\[notebook\]"):
        plots.sweep_heatmap(result)
    with pytest.raises(MissingExtraError, match=r"aotoolkit\[notebook\]"):
        plots.training_curves(run_folder)
    with pytest.raises(MissingExtraError, match=r"aotoolkit\[notebook\]"):
        plots.eval_table(made.result(made.arms("taboo")))


def luminance(colour):
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("paper", ["#ffffff", "#111111"])
def test_colours_stand_out_on_light_and_dark_paper(paper):
    for colour in (*plots.COLOURS, plots.INK):
        light, dark = sorted((luminance(colour), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_nothing_is_painted_behind_a_figure(result, run_folder):
    for figure in (plots.sweep_heatmap(result), plots.training_curves(run_folder)):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert figure.layout.font.color == plots.INK


def test_a_reliability_diagram_shows_each_bin_with_its_interval_and_n():
    measured = reliability(
        [0.1, 0.15, 0.9, 0.95, 0.99], [0, 1, 1, 1, 0], ["a", "b", "a", "b", "c"], unit="<i>"
    )
    sure = reliability([1.0] * 4, [True] * 4, list("abcd"), unit="word")
    figure = plots.reliability_diagram({"log <b>": measured, "sure": sure})
    diagonal, first, second = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    assert list(first.x) == pytest.approx([bin.confidence for bin in measured.bins])
    assert list(first.y) == pytest.approx([bin.accuracy.mean for bin in measured.bins])
    tops = [y + up for y, up in zip(first.y, first.error_y.array, strict=True)]
    assert tops == pytest.approx([bin.accuracy.high for bin in measured.bins])
    assert second.y[0] - second.error_y.arrayminus[0] < 1  # four words do not make it certain
    assert [row[0] for row in first.customdata] == [bin.num_items for bin in measured.bins]
    assert "AUROC" in first.name
    assert "AUROC" not in second.name
    assert "n = 4 (unit: word)" in figure.layout.title.text
    text = figure.to_json()
    assert "<b>" not in text.replace("\\u003c", "<")
    assert "<i>" not in text.replace("\\u003c", "<")


def ends(bars, means):
    """Lower and upper ends of error bars."""
    return [
        (mean - down, mean + up)
        for mean, down, up in zip(means, bars.arrayminus, bars.array, strict=True)
    ]


def test_a_table_is_drawn_arm_by_arm_with_intervals_and_chance():
    rows = [*made.arms("taboo"), *made.arms("<b>trait", void=True)]
    figure = plots.eval_table(made.result(rows))
    assert [trace.name for trace in figure.data] == [
        *("oracle", "control", "baseline", "skyline"),
        *("oracle (void)", "control (void)", "baseline (void)", "skyline (void)"),
    ]
    oracles = figure.data[0]
    assert (list(oracles.y), list(oracles.x)) == (["full", "plain"], [0.75, 0.5])
    assert ends(oracles.error_x, oracles.x) == [
        pytest.approx((0.65, 0.85)),
        pytest.approx((0.4, 0.6)),
    ]
    # Kinds are told apart by colour and by shape; what is void has neither colour nor filling.
    assert len({trace.marker.color for trace in figure.data[:4]}) == 4
    assert len({trace.marker.symbol for trace in figure.data[:4]}) == 4
    assert {trace.marker.color for trace in figure.data[4:]} == {plots.INK}
    assert all(trace.marker.symbol.endswith("-open") for trace in figure.data[4:])
    assert [shape.x0 for shape in figure.layout.shapes] == [0.25, 0.25]
    first, second = (annotation.text for annotation in figure.layout.annotations)
    assert first == "taboo: names the word, n = 4 (unit: organism)"
    assert second.startswith("&lt;b&gt;trait")
    assert "void" in second
    assert list(figure.layout.yaxis.range) == [4.5, -0.5]  # the first arm on top


def test_chosen_tasks_are_drawn_and_unknown_ones_named():
    result = made.result([*made.arms("taboo"), *made.arms("trait")])
    assert len(plots.eval_table(result, tasks=["trait"]).data) == 4
    with pytest.raises(EvalError, match=r"'gist'.*taboo, trait"):
        plots.eval_table(result, tasks=["gist"])
    with pytest.raises(EvalError, match="no task"):
        plots.eval_table(made.result([]))


def test_an_ablation_sets_oracles_side_by_side():
    rows = [
        *made.arms("taboo"),
        *made.arms("trait", void=True),
        made.row("gist", "full", "oracle", 0.9),
    ]
    figure = plots.eval_ablation(made.result(rows))
    assert list(figure.layout.yaxis.ticktext) == ["taboo", "trait (void)"]
    full, grey, plain, _, chance = figure.data
    assert (full.name, list(full.x), list(grey.x)) == ("full", [0.75], [0.75])
    assert (grey.marker.color, grey.showlegend) == (plots.INK, False)
    assert full.y[0] == -plain.y[0] < 0  # either side of the task's place
    assert grey.y[0] == 1 + full.y[0]
    assert ends(plain.error_x, plain.x) == [pytest.approx((0.4, 0.6))]
    assert list(chance.x) == [0.25, 0.25]
    with pytest.raises(EvalError, match="two oracles"):
        plots.eval_ablation(made.result([made.row("gist", "full", "oracle", 0.9)]))


def test_a_ladder_has_a_line_for_each_oracle_and_the_best_of_the_rest():
    rows = [
        *made.arms("people/seen"),
        made.row("people/seen", "noise", "control", 0.1),
        *made.arms("people/new", void=True),
    ]
    figure = plots.eval_ladder(made.result(rows))
    assert [trace.name for trace in figure.data] == [
        "full (oracle)",
        "plain (oracle)",
        "base (control)",
        "lens (baseline)",
        "probe (skyline)",
        "chance",
    ]
    assert list(figure.data[0].y) == [0.75, 0.75]
    assert list(figure.layout.xaxis.ticktext) == ["seen", "new (void)"]
    assert len({trace.x[0] for trace in figure.data[:5]}) == 5  # no interval hides another
    with pytest.raises(EvalError, match="no ladder"):
        plots.eval_ladder(made.result(made.arms("taboo")))
