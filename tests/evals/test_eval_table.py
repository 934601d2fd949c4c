"""What a table says, and that it says it of the right rows."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tiny_items
from rich.console import Console
from tiny_suite import Guesser, HalfTold, Planted, Told, suite

from aotoolkit.errors import EvalError
from aotoolkit.evals import (
    ArmAnswer,
    Estimate,
    Suite,
    SuiteEntry,
    bootstrap_mean,
    chance_level,
    compare,
    run_suite,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


def table_of(model, *arms, task=None):
    return run_suite(suite(*arms, task=task), model, progress=False).table


def printed(table, width: int = 120) -> str:
    file = io.StringIO()
    table.render(Console(file=file, width=width))
    return file.getvalue()


ARMS = (
    Told("full"),
    HalfTold("half", "oracle"),
    Guesser("zero", "control"),
    Guesser("lens"),
    Told("probe", "skyline"),
)


@pytest.fixture(scope="module")
def table(model):
    return table_of(model, *ARMS)


def test_figures_are_those_of_the_statistics(table):
    by_unit = {f"unit {unit}": [float(unit % 3 == 0)] * 3 for unit in range(6)}
    row = table.row("planted", "lens")
    expected = bootstrap_mean(list(by_unit.values()), bounds=(0.0, 1.0))
    assert (row.mean, row.n) == (expected.mean, expected.n)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    ones = {unit: [1.0] * 3 for unit in by_unit}
    others = {"half": by_unit, "zero": by_unit, "lens": by_unit, "probe": ones}
    expected = compare(ones, others, bounds=(-1, 1))
    assert {r.arm: r.difference for r in table.rows if r.arm != "full"} == expected
    assert table.row("planted", "full").difference is None
    difference = row.difference
    assert difference.num_comparisons == 4
    assert difference.mean == pytest.approx(2 / 3)


def test_what_the_rows_say(table):
    rows = table.to_dict()["rows"]
    assert json.loads(json.dumps(table.to_dict())) == table.to_dict()
    assert set(rows[0]) == {
        *("task", "arm", "kind", "metric", "mean", "low", "high", "n", "unit", "void"),
        *("chance", "num_items", "num_seeds", "difference"),
    }
    assert rows[3]["difference"]["p_holm"] >= rows[3]["difference"]["p_value"]
    frame = table.to_dataframe()
    assert list(frame["arm"]) == ["full", "half", "zero", "lens", "probe"]
    assert frame["difference_mean"][3] == pytest.approx(2 / 3)
    with pytest.raises(EvalError, match="planted/full"):
        table.row("planted", "nobody")


def test_claims_are_read_off(table, model):
    first, second, third = table.claims()
    assert "at or above the best baseline on 1 of 1 secret-keeping tasks (planted)" in first
    assert "on 1 the interval" in first
    assert second == "No control lies above chance with an interval that excludes it."
    assert third == (
        "Of the oracles, full is ahead on 1 of 1 tasks (planted); on 1 the interval of the paired "
        "difference excludes 0 (planted)."
    )
    even = table_of(model, Told("one"), Told("two"), Guesser())
    assert not any("Of the oracles" in claim for claim in even.claims())
    beaten = table_of(model, HalfTold("weak", "oracle"), Told("lens", "baseline"))
    first, second = beaten.claims()
    assert "on 0 of 1 secret-keeping tasks; on 0" in first
    assert second == "No control was run, so nothing tells reading from guessing."
    leaking = table_of(model, Told(), Told("shuffled", "control"), Told("zero", "control"))
    assert "planted: shuffled 1.00" in leaking.claims()[1]
    assert "keeps the evidence; planted: zero 1.00" in leaking.claims()[1]
    assert leaking.claims()[0].startswith("No secret-keeping task has both")


def test_who_answers_freely_is_compared_with_who_only_chooses_by_the_choice(model):
    class Named(Planted):
        """Lenses, whose text is their choice, seem to name what the oracle has to say freely."""

        secondary = ("forced choice",)

        def score(self, item, answer):
            return float(answer.arm == "lens")

        def secondary_score(self, name, item, answer):
            return float(answer.text in item.answers)

    table = table_of(model, Told("full", "oracle"), HalfTold("lens", "baseline"), task=Named())
    assert table.row("planted", "full").mean == 0
    first, _ = table.claims()
    assert "at or above the best baseline on 1 of 1 secret-keeping tasks (planted)" in first


def test_a_task_whose_skyline_is_at_chance_is_void(model):
    arms = (Told(), Guesser("lens"), Guesser("probe", "skyline"))
    table = table_of(model, *arms)
    assert all(row.void for row in table.rows)
    why = table.why_void("planted")
    assert "probe" in why
    assert "does not exclude chance (0.33)" in why
    assert "Void and not counted" not in table.claims()[0]  # nothing else is there
    text = printed(table)
    assert "VOID: the best skyline, probe" in " ".join(text.split())
    assert "void (1.00 [" in text
    better = table_of(model, *arms, Told("upper", "skyline"))
    assert not any(row.void for row in better.rows)
    without = table_of(model, Told(), Guesser())
    assert not any(row.void for row in without.rows)
    assert any("has no skyline" in note for note in without.notes)


def test_void_tasks_are_not_counted(model):
    good = SuiteEntry(task=Planted("good"), arms=(Told(), Guesser(), Told("probe", "skyline")))
    void = SuiteEntry(task=Planted("bad"), arms=(Told(), Guesser(), Guesser("probe", "skyline")))
    made = Suite(name="two", entries=(good, void))
    first, _ = run_suite(made, model, progress=False).table.claims()
    assert "on 1 of 1 secret-keeping tasks (good)" in first
    assert first.endswith("Void and not counted: bad.")


def test_the_best_of_several_oracles_is_partly_luck(table):
    assert any("2 oracles" in note and "luck" in note for note in table.notes)
    assert table.row("planted", "half").difference.mean == pytest.approx(2 / 3)


class Seeded(Told):
    def __init__(self, seed, right, name="oracle", kind="oracle"):
        super().__init__(name, kind)
        self.oracle_seed = seed
        self.right = right

    def _chosen(self, item):
        return super()._chosen(item) if item.unit in self.right else "none"


def test_seeds_are_paired_where_both_have_them(model):
    units = [f"unit {number}" for number in range(6)]
    arms = [Seeded(0, units[:4]), Seeded(1, units[:3])]
    controls = [Seeded(0, units[:1], "zero", "control"), Seeded(1, [], "zero", "control")]
    other = [Seeded(7, units[:2], "smaller")]
    table = table_of(model, *arms, *controls, *other, Guesser())
    assert table.row("planted", "oracle").mean == pytest.approx(7 / 12)
    differences = {arm: table.row("planted", arm).difference for arm in ("zero", "smaller")}
    assert differences["zero"].num_seeds == 2
    assert differences["zero"].mean == pytest.approx(3 / 6)
    assert differences["smaller"].num_seeds == 1
    assert differences["smaller"].mean == pytest.approx(7 / 12 - 2 / 6)
    assert table.row("planted", "guesser").difference.num_seeds == 2
    assert "2 seeds" in printed(table)


class Graded(Planted):
    secret_keeping = False
    secondary = ("says water",)

    def secondary_score(self, name, item, answer):
        assert name == "says water"
        return float(answer.text == "water")

    def chance(self, items):
        return 0.25


def test_further_scores_have_rows_of_their_own(model):
    table = table_of(model, Told(), Guesser(), task=Graded())
    assert [(row.arm, row.metric) for row in table.rows] == [
        *(("oracle", "names the word"), ("guesser", "names the word")),
        *(("oracle", "says water"), ("guesser", "says water")),
    ]
    further = table.row("planted", "guesser", "says water")
    assert (further.mean, further.to_dict()["chance"]) == (1.0, None)
    # There the guesser is right and no oracle is better.
    assert further.difference.mean == pytest.approx(-2 / 3)
    assert table.row("planted", "oracle").chance == 0.25
    assert "says water" in printed(table)


class OfASet(Planted):
    metric = "AUROC"

    def estimate(self, items, answers, *, seed):
        assert [item.id for item in items] == [answer.item for answer in answers]
        share = float(np.mean([a.choice in i.answers for i, a in zip(items, answers, strict=True)]))
        return Estimate(share, share / 2, 1.0, 6, "organism")

    def chance(self, items):
        return 0.5


def test_a_set_is_scored_by_its_own_estimate(model):
    units = [f"unit {number}" for number in range(6)]
    arms = (Seeded(0, units), Seeded(1, units[:3]), Guesser("probe", "skyline"))
    table = table_of(model, *arms, task=OfASet())
    row = table.row("planted", "oracle")
    assert (row.mean, row.low, row.high) == pytest.approx((0.75, 0.375, 1.0))
    assert (row.num_seeds, row.difference, row.metric) == (2, None, "AUROC")
    assert row.void  # the probe's lower end is below one half


def test_chance_is_a_mean_over_units(model):
    one, two = tiny_items.items(model, 2)
    three = dataclasses.replace(one, id="three", unit="red", choices=("water", "word"))
    free = dataclasses.replace(one, id="free", unit="green", choices=())
    assert chance_level([one]) == pytest.approx(1 / 3)
    assert chance_level([one, three, two, free]) == pytest.approx(((1 / 3 + 1 / 2) / 2 + 1 / 3) / 3)
    both = dataclasses.replace(one, answers=("water", "word"))
    assert chance_level([both]) == pytest.approx(2 / 3)
    with pytest.raises(EvalError):
        chance_level([])


@pytest.mark.parametrize("width", [80, 200])
def test_it_prints_a_block_for_each_task(table, width):
    text = printed(table, width)
    joined = " ".join(text.replace("│", " ").split())
    for part in (
        "planted: names the word, secret-keeping",
        "unit: organism, 18 items, chance 0.33",
        "oracle minus arm",
        "What the table says",
        "after Holm's correction",
    ):
        assert part in joined
    assert text.index("full") < text.index("zero") < text.index("lens") < text.index("probe")
    assert "1.00 [" in text


def test_a_name_cannot_drive_the_terminal(model):
    table = table_of(model, Told("\x1b[31m[bold]red[/bold]"))
    text = printed(table, 200)
    assert "\x1b" not in text
    assert r"\x1b[31m[bold]red[/bold]" in text


def test_an_answer_without_a_score_is_no_tie(model):
    class Silent(Told):
        def answer(self, items):
            return [ArmAnswer(item=item.id, arm=self.name, text="") for item in items]

    assert table_of(model, Silent()).row("planted", "oracle").mean == 0
