"""The bootstraps and tests against scipy's, against enumeration, and by what they cover."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import ScoreError
from aotoolkit.evals.statistics import (
    bootstrap_mean,
    compare,
    hierarchical_bootstrap,
    holm,
    paired_difference,
)


def test_agrees_with_scipy():
    rng = np.random.default_rng(0)
    units = [list(rng.random(rng.integers(1, 9))) for _ in range(20)]
    ours = bootstrap_mean(units, resamples=20_000)
    means = [np.mean(unit) for unit in units]
    theirs = scipy.stats.bootstrap(
        (means,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert ours.mean == pytest.approx(np.mean(means))
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_more_prompts_to_the_same_organisms_do_not_narrow_the_interval():
    few = bootstrap_mean([[0.0], [1.0], [1.0], [0.0]])
    many = bootstrap_mean([[0.0] * 50, [1.0] * 50, [1.0] * 50, [0.0] * 50])
    assert (few.low, few.high) == (many.low, many.high)


def test_each_score_counts_once_where_weighted():
    units = [[1.0] * 9, [0.0]]
    assert bootstrap_mean(units).mean == 0.5
    weighted = bootstrap_mean(units, weighted=True)
    assert weighted.mean == 0.9
    assert (weighted.low, weighted.high, weighted.n) == (0, 1, 2)


def test_no_scores_is_an_error():
    with pytest.raises(ScoreError, match="score"):
        bootstrap_mean([])
    with pytest.raises(ScoreError, match="score"):
        bootstrap_mean([[1.0], []])
    with pytest.raises(ScoreError, match="NaN"):
        bootstrap_mean([[1.0], [float("nan")]])


def test_n_and_its_unit_are_said():
    assert bootstrap_mean([[1.0], [0.0]], unit="predicate").text == (
        "0.50 [0.00, 1.00] (n = 2, unit: predicate)"
    )


def test_units_that_all_stand_at_a_bound_get_the_exact_limit():
    none = bootstrap_mean([[0.0]] * 12, bounds=(0, 1))
    every = bootstrap_mean([[1.0]] * 12, bounds=(0, 1))
    exact = scipy.stats.binomtest(0, 12).proportion_ci(method="exact")
    assert (none.low, none.high) == (0, pytest.approx(exact.high))
    assert (every.low, every.high) == (pytest.approx(1 - exact.high), 1)
    assert bootstrap_mean([[0.0]] * 12).high == 0  # without bounds nothing is known
    with pytest.raises(ScoreError, match="outside"):
        bootstrap_mean([[2.0]], bounds=(0, 1))


def test_alike_between_the_bounds_is_not_certain():
    alike = bootstrap_mean([[0.0]] * 20, bounds=(-1.0, 1.0))
    missed = 1 - 0.025 ** (1 / 20)
    assert (alike.low, alike.mean, alike.high) == pytest.approx((-missed, 0, missed))


def test_units_that_are_alike_in_themselves_divided_are_not_certain_either():
    """Each unit half right: resampling sees no scatter between units."""
    alike = bootstrap_mean([[1.0, 0.0]] * 12, bounds=(0, 1))
    missed = 1 - 0.025 ** (1 / 12)
    assert (alike.low, alike.high) == pytest.approx((0.5 - missed / 2, 0.5 + missed / 2))
    alone = bootstrap_mean([[1.0, 0.0]], bounds=(0, 1))
    assert (alone.low, alone.high) == pytest.approx((0.5 - 0.975 / 2, 0.5 + 0.975 / 2))


def test_two_units_on_which_all_is_won_prove_nothing():
    ones, zeros = ({name: [score] * 3 for name in "ab"} for score in (1.0, 0.0))
    found = paired_difference(ones, zeros, bounds=(-1, 1))
    assert (found.mean, found.high, found.p_value) == (1, 1, 0.5)
    assert found.low == pytest.approx(1 - 2 * (1 - 0.025**0.5))
    assert found.low < 0
    many = paired_difference(*({n: [v] for n in range(20)} for v in (1.0, 0.0)), bounds=(-1, 1))
    assert many.low > 0.6


# Seeds, organisms, prompts


def test_one_seed_and_one_prompt_is_the_bootstrap_over_organisms():
    rng = np.random.default_rng(1)
    values = rng.random(15)
    tree = hierarchical_bootstrap({0: {i: [v] for i, v in enumerate(values)}}, resamples=20_000)
    flat = bootstrap_mean([[v] for v in values], resamples=20_000)
    assert tree.mean == pytest.approx(flat.mean)
    assert (tree.low, tree.high) == pytest.approx((flat.low, flat.high), abs=0.01)
    assert (tree.n, tree.num_seeds) == (15, 1)


def test_its_variance_is_that_of_a_bootstrap_written_out():
    rng = np.random.default_rng(2)
    scores = {s: {o: list(rng.random(3) + s + 2 * o) for o in range(4)} for s in range(3)}
    table = np.array([[scores[s][o] for o in range(4)] for s in range(3)])  # [s o p]
    draws = []
    for _ in range(8000):
        seeds, organisms = rng.integers(3, size=3), rng.integers(4, size=4)
        prompts = rng.integers(3, size=(4, 3))
        drawn = [
            table[np.ix_(seeds, [o], p)].mean() for o, p in zip(organisms, prompts, strict=True)
        ]
        draws.append(np.mean(drawn))
    ours = hierarchical_bootstrap(scores, resamples=8000)
    assert ours.mean == pytest.approx(table.mean())
    assert (ours.low, ours.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.15)


def test_more_seeds_on_the_same_organisms_are_not_more_organisms():
    rng = np.random.default_rng(3)
    organisms = {o: list(np.full(4, rng.random())) for o in range(10)}
    one = hierarchical_bootstrap({0: organisms})
    five = hierarchical_bootstrap(dict.fromkeys(range(5), organisms))
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.1)
    assert (five.n, five.num_seeds) == (10, 5)
    own = hierarchical_bootstrap(
        {s: {(s, o): values for o, values in organisms.items()} for s in range(5)}
    )
    assert own.n == 50
    assert own.high - own.low < 0.7 * (one.high - one.low)


def test_the_interval_covers_the_truth_and_counting_prompts_does_not():
    rng = np.random.default_rng(4)
    hits = {"organisms": 0, "prompts": 0}
    trials = 150
    for _ in range(trials):
        organism = rng.normal(size=(1, 15, 1))
        values = 5 + organism + 0.3 * rng.normal(size=(5, 1, 1)) + rng.normal(size=(5, 15, 6))
        right = hierarchical_bootstrap(
            {s: {o: values[s, o] for o in range(15)} for s in range(5)}, resamples=400
        )
        wrong = bootstrap_mean(values.reshape(-1, 1).tolist(), resamples=400)
        hits["organisms"] += right.low <= 5 <= right.high
        hits["prompts"] += wrong.low <= 5 <= wrong.high
    assert hits["organisms"] / trials > 0.88  # 0.95 with many organisms and seeds
    assert hits["prompts"] / trials < 0.6


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "seed"),
        ({0: {}}, "organism"),
        ({0: {"a": []}}, "no score"),
        ({0: {"a": [1.0], "b": [1.0]}, 1: {"a": [1.0]}}, "share 1 units"),
        ({0: {"a": [1.0]}, 1: {"a": [1.0, 0.0]}}, "other numbers"),
        ({0: {"a": [float("inf")]}}, "infinity"),
    ],
)
def test_trees_that_are_not_whole(scores, message):
    with pytest.raises(ScoreError, match=message):
        hierarchical_bootstrap(scores)


# Differences


def organisms(values) -> dict[int, list[float]]:
    return {i: [float(v)] for i, v in enumerate(values)}


@pytest.mark.parametrize("n", [5, 12, 30])
def test_the_test_is_scipys_permutation_test(n):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    found = paired_difference(organisms(ours), organisms(theirs), resamples=20_000)
    expected = scipy.stats.permutation_test(
        (ours, theirs),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    ).pvalue
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.p_value == pytest.approx(expected, abs=1e-9 if n <= 12 else 0.015)


def test_pairing_removes_what_both_sides_share():
    rng = np.random.default_rng(5)
    base = rng.normal(0, 10, 20)
    ours = organisms(base + 1 + 0.1 * rng.normal(size=20))
    paired = paired_difference(ours, organisms(base))
    assert 0.9 < paired.low < paired.high < 1.1
    assert paired.p_value < 0.001


def test_equal_sides_do_not_differ():
    same = {"a": [0.0, 1.0], "b": [1.0, 1.0]}
    found = paired_difference(same, same)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_baseline_without_seeds_stands_against_each_seed():
    ours = {s: {"a": [1.0, 0.0], "b": [float(s), 1.0]} for s in (0, 1)}
    theirs = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    found = paired_difference(ours, theirs)
    assert found.mean == pytest.approx(np.mean([0.5, 0.5, 0.5, 1.0]))
    assert (found.n, found.num_seeds) == (2, 2)
    assert found.p_value == 0.5  # two organisms cannot show more


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"a": [1.0]}, {"b": [1.0]}, "'a' is only"),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}, "prompt"),
        ({0: {"a": [1.0]}}, {1: {"a": [1.0]}}, "seeds"),
        ({}, {}, "organism"),
    ],
)
def test_sides_that_do_not_pair(ours, theirs, message):
    with pytest.raises(ScoreError, match=message):
        paired_difference(ours, theirs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values):
    p_values = {str(i): value for i, value in enumerate(values)}
    corrected = holm(p_values)
    for name in p_values:
        # Rejected only where every intersection that it is part of is rejected.
        worst = max(
            min(1.0, size * min(p_values[member] for member in members))
            for size in range(1, len(p_values) + 1)
            for members in itertools.combinations(p_values, size)
            if name in members
        )
        assert corrected[name] == pytest.approx(worst)


@pytest.mark.parametrize("p_value", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value(p_value):
    with pytest.raises(ScoreError, match="p-value"):
        holm({"a": p_value})


def test_comparisons_made_together_are_corrected_and_say_so():
    rng = np.random.default_rng(6)
    ours = organisms(rng.normal(1, 1, 10))
    others = {name: organisms(rng.normal(mean, 1, 10)) for name, mean in (("x", 0), ("y", 1))}
    found = compare(ours, others, unit="person")
    alone = paired_difference(ours, others["x"], unit="person")
    assert found["x"].p_value == alone.p_value < found["x"].p_holm == 2 * alone.p_value
    assert found["x"].text.endswith("after Holm's correction for 2 comparisons")
    assert "unit: person" in found["y"].text
    assert "Holm" not in alone.text
