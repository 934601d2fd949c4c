"""Ladders are found by their rule, and a rung's figure is over units."""

import eval_results as made
import pytest

from aotoolkit.evals.views import ablation_rows, ladders


def test_items_with_rungs_are_a_ladder_in_natural_order():
    rungs = {0: "L10", 1: "L2", 2: "L2", 4: "L2"}
    records = [
        made.record(number, arm="full", correct=float(number != 2), details={"rung": rung})
        for number, rung in rungs.items()
    ]
    # Of one unit, with seeds: 0.5 for the item, then (0.5 + 1) / 2 for the unit.
    records += [
        made.record(5, arm="full", correct=right, seed=seed, details={"rung": "L2"})
        for seed, right in enumerate((0.0, 1.0))
    ]
    (ladder,) = ladders(made.result(made.arms("taboo"), records))
    assert ladder.rungs == ("L2", "L10")
    found = ladder.figures["L2", "full"]
    assert found.n == 3  # organisms 0, 1 and 2
    assert found.mean == pytest.approx(((1 + 0.5) / 2 + 0 + 1) / 3)
    assert ladder.figures["L10", "full"].n == 1
    assert ladder.chance == {"L2": 0.25, "L10": 0.25}
    assert ladder.best_arms() == {"full": "oracle"}


def test_tasks_named_alike_are_a_ladder_in_the_order_of_the_table():
    rows = made.arms("people/seen") + made.arms("people/new", void=True) + made.arms("alone/one")
    (ladder,) = ladders(made.result(rows))
    assert (ladder.name, ladder.rungs, ladder.void) == ("people", ("seen", "new"), {"new"})
    assert ladder.figures["new", "lens"].mean == 0.5
    assert list(ladder.best_arms().items()) == [
        ("full", "oracle"),
        ("plain", "oracle"),
        ("base", "control"),
        ("lens", "baseline"),
        ("probe", "skyline"),
    ]


def test_an_arm_without_the_hard_rungs_is_not_the_best():
    rows = [
        *made.arms("people/seen"),
        made.row("people/seen", "easy", "baseline", 0.99),
        *made.arms("people/new"),
    ]
    (ladder,) = ladders(made.result(rows))
    assert "easy" not in ladder.best_arms()


def test_one_rung_is_no_ladder():
    records = [made.record(arm="full", details={"rung": 1})]
    assert ladders(made.result(made.arms("people/seen"), records)) == ()


def test_ablations_are_tasks_with_several_oracles():
    rows = [*made.arms("taboo"), made.row("trait", "full", "oracle", 0.5)]
    assert {
        task: [row.arm for row in own] for task, own in ablation_rows(made.result(rows)).items()
    } == {"taboo": ["full", "plain"]}
