"""The bootstrap against scipy's."""

import numpy as np
import pytest
import scipy.stats

from aotoolkit.evals import bootstrap_mean


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


def test_no_scores_is_an_error():
    with pytest.raises(ValueError, match="score"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="score"):
        bootstrap_mean([[1.0], []])
