"""Positions are drawn near the end, within their bounds, and never outside the context."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data.window import FEW_TOKENS, SINGLE_TOKEN, Window
from aotoolkit.errors import DataError

BOUNDS = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda pair: tuple(sorted(pair)))


@given(BOUNDS, BOUNDS, st.integers(0, 5), st.integers(1, 40), st.integers())
def test_positions_lie_within_the_bounds(width, offset, start, length, seed):
    end = start + length
    positions = Window(width=width, offset=offset).draw(random.Random(seed), start, end)
    assert start <= positions[0]
    assert positions[-1] < end
    assert len(positions) <= width[1]
    assert end - positions[-1] <= offset[1]
    if length >= offset[1] + width[1]:
        assert len(positions) >= width[0]
        assert end - positions[-1] >= offset[0]


def test_every_size_comes_up():
    drawn = [FEW_TOKENS.draw(random.Random(seed), 0, 50) for seed in range(2000)]
    assert {len(positions) for positions in drawn} == {1, 2, 3}
    assert {50 - positions[-1] for positions in drawn} == set(range(1, 11))
    single = [SINGLE_TOKEN.draw(random.Random(seed), 0, 50) for seed in range(200)]
    assert {tuple(positions) for positions in single} == {(p,) for p in range(45, 50)}


@pytest.mark.parametrize("bounds", [(0, 3), (3, 2), (-1, 1)])
def test_bounds_that_are_none(bounds):
    with pytest.raises(DataError, match="width"):
        Window(width=bounds, offset=(1, 1))
    with pytest.raises(DataError, match="offset"):
        Window(width=(1, 1), offset=bounds)
