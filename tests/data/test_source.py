"""Layers of examples, and generators that depend on nothing but their seed."""

import random

import pytest

from aotoolkit.data import LayerChoice
from aotoolkit.data.source import file_digest, group_rng
from aotoolkit.errors import DataError


def test_layer_modes():
    rng = random.Random(0)
    assert LayerChoice((2, 4, 6), "each").draw(rng) == [(2,), (4,), (6,)]
    assert LayerChoice((2, 4, 6), "all").draw(rng) == [(2, 4, 6)]
    drawn = {tuple(LayerChoice((2, 4, 6), "one").draw(rng)) for _ in range(60)}
    assert drawn == {((2,),), ((4,),), ((6,),)}


@pytest.mark.parametrize("layers", [(), (-1,), (4, 2), (2, 2)])
def test_layers_that_cannot_be_read(layers):
    with pytest.raises(DataError, match="increasing"):
        LayerChoice(layers, "one")


def test_unknown_layer_mode():
    with pytest.raises(DataError, match="'one', 'each', 'all'"):
        LayerChoice((1,), "several")


def test_generators_differ_by_seed_name_and_index():
    def draw(*key):
        return group_rng(*key).random()

    assert draw(0, "a", 0) == draw(0, "a", 0)
    assert len({draw(0, "a", 0), draw(1, "a", 0), draw(0, "b", 0), draw(0, "a", 1)}) == 4


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
