"""Claims about oracles: which pairs are compared, how, and what the table says of them."""

import io
import json

import pytest
import tiny_items
from rich.console import Console
from tiny_suite import HalfTold, Planted, Told, suite

from aotoolkit.errors import EvalError
from aotoolkit.evals import holm, paired_difference, run_suite
from aotoolkit.evals.comparisons import Comparison, TaskScores, compared, sentences
from aotoolkit.evals.report import write_report

UNITS = [f"unit {number}" for number in range(12)]
ONES = {unit: [1.0, 1.0] for unit in UNITS}
ZEROS = {unit: [0.0, 0.0] for unit in UNITS}
HALVES = {unit: [float(number % 2)] * 2 for number, unit in enumerate(UNITS)}


def task(name: str, *, void: bool = False, metric: str = "names it", **scores) -> TaskScores:
    by_arm = {arm: own if 0 in own else {None: own} for arm, own in scores.items()}
    return TaskScores(task=name, unit="organism", void=void, scores={metric: by_arm})


def test_each_pair_on_each_task_with_one_correction():
    tasks = [task("a", new=ONES, old=ZEROS), task("b", new=HALVES, old=ONES)]
    claim = Comparison(claim="new is better", pairs=(("new", "old"),))
    first, second = compared([claim], tasks)
    expected = [
        paired_difference(ONES, ZEROS, bounds=(-1, 1)),
        paired_difference(HALVES, ONES, bounds=(-1, 1)),
    ]
    corrected = holm({str(n): one.p_value for n, one in enumerate(expected)})
    for pair, one, number in ((first, expected[0], "0"), (second, expected[1], "1")):
        assert (pair.difference.mean, pair.difference.low) == (one.mean, one.low)
        assert pair.difference.p_holm == corrected[number]
        assert pair.difference.num_comparisons == 2
    assert (first.verdict, second.verdict) == ("holds", "is refuted")
    (said,) = sentences([first, second])
    assert "higher on 1 of 2 tasks" in said
    assert "holds on 1 (a +1.00), is refuted on 1 (b -0.50), is undecided on 0" in said


def test_a_void_task_decides_nothing_and_is_not_corrected_for():
    tasks = [task("a", new=ONES, old=ZEROS), task("b", void=True, new=ONES, old=ZEROS)]
    pairs = compared([Comparison(claim="better", pairs=(("new", "old"),))], tasks)
    assert [pair.verdict for pair in pairs] == ["holds", "is undecided"]
    assert pairs[0].difference.num_comparisons == 1
    (said,) = sentences(pairs)
    assert "1 of 1 tasks" in said
    assert said.endswith("Void and not counted: b.")
    (alone,) = sentences(pairs[1:])
    assert "void on all tasks (b)" in alone


def test_seeds_are_paired_where_both_have_them_and_averaged_where_not():
    three = {0: ONES, 1: HALVES, 2: ZEROS}
    claim = Comparison(claim="better", pairs=(("new", "old"),))
    (same,) = compared([claim], [task("a", new=three, old=dict(three))])
    assert same.difference.num_seeds == 3
    assert same.difference.mean == 0
    (other,) = compared([claim], [task("a", new=three, old={0: ZEROS})])
    assert other.difference.num_seeds == 1
    assert other.difference.mean == pytest.approx(0.5)


def test_what_one_seed_of_three_shows_is_not_what_the_recipe_does():
    one_of_three = {0: ONES, 1: ZEROS, 2: ZEROS}
    nothing = dict.fromkeys(range(3), ZEROS)
    (pair,) = compared(
        [Comparison(claim="better", pairs=(("new", "old"),))],
        [task("a", new=one_of_three, old=nothing)],
    )
    # Every unit gains in the mean over these seeds, so that the test over units is sure.
    assert pair.difference.p_holm < 0.001
    assert pair.difference.low == 0
    assert pair.verdict == "is undecided"


def test_tasks_scores_and_arms_that_a_claim_is_not_about_are_left_out():
    tasks = [
        task("a", new=ONES, old=ZEROS),
        task("b", new=ONES, old=ZEROS),
        task("c", metric="wrong", new=ZEROS, old=ONES),
        task("d", new=ONES),
    ]

    def names(**changes) -> list[str]:
        claim = Comparison(claim="better", pairs=(("new", "old"),), **changes)
        return [pair.task for pair in compared([claim], tasks)]

    assert names() == ["a", "b", "c"]
    assert names(tasks=("b",)) == ["b"]
    assert names(leave_out=("b",)) == ["a", "c"]
    assert names(metric="wrong") == ["c"]


@pytest.mark.parametrize(
    "changes", [{"claim": ""}, {"pairs": ()}, {"pairs": (("new", "new"),)}], ids=str
)
def test_a_claim_about_nothing_is_refused(changes):
    with pytest.raises(EvalError, match="two different arms"):
        Comparison(**{"claim": "better", "pairs": (("new", "old"),)} | changes)


def test_the_table_and_the_report_decide_a_suites_claims(tmp_path):
    model = tiny_items.target(tmp_path / "target")
    claim = Comparison(claim="<b>reading</b> helps", pairs=(("full", "half"),))
    tiny = suite(
        Told("full"), HalfTold("half", "oracle"), task=Planted(units=24), comparisons=(claim,)
    )
    result = run_suite(tiny, model, progress=False)
    (pair,) = result.table.comparisons
    assert pair.difference.mean == pytest.approx(2 / 3)
    assert pair.metric == "names the word"
    assert any("full against half" in said for said in result.table.claims())
    assert json.loads(json.dumps(result.to_dict()))["comparisons"][0]["verdict"] == "holds"
    file = io.StringIO()
    result.table.render(Console(file=file, width=140))
    assert "Claim: <b>reading</b> helps" in file.getvalue()
    page = write_report(result, tmp_path).read_text()
    assert "&lt;b&gt;reading&lt;/b&gt; helps" in page
    assert "<b>reading" not in page
