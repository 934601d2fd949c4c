"""Norm and cosine of two reads, against plain arithmetic and a real adapter."""

import dataclasses
import math

import pytest
import torch

from aotoolkit.errors import IncompatibleActivationsError
from aotoolkit.tracing import TracedModel, activation_difference


def test_the_figures_are_those_of_each_vector_alone(model: TracedModel):
    acts = model.activations("What is the secret?", layers=[1, 3], adapter="a")
    base = model.activations("What is the secret?", layers=[1, 3])
    found = activation_difference(acts, base)
    assert (found.layers, found.positions, found.tokens) == (
        acts.layers,
        acts.positions,
        acts.tokens,
    )
    for row in range(2):
        for col in range(len(acts)):
            ours, theirs = ([float(x) for x in read.vectors[row, col]] for read in (acts, base))
            apart = math.dist(ours, theirs)
            lengths = [math.hypot(*vector) for vector in (ours, theirs)]
            dot = sum(a * b for a, b in zip(ours, theirs, strict=True))
            assert found.norm[row, col] == pytest.approx(apart, rel=1e-4)
            assert found.relative_norm[row, col] == pytest.approx(apart / lengths[1], rel=1e-4)
            assert found.cosine[row, col] == pytest.approx(dot / math.prod(lengths), abs=1e-5)
    assert float(found.norm.min()) > 0, "the adapter changes every token"
    table = found.to_pandas()
    assert len(table) == found.norm.numel()
    assert table.iloc[-1]["norm"] == pytest.approx(float(found.norm[-1, -1]))


def test_a_read_does_not_differ_from_itself(model: TracedModel):
    acts = model.activations("What is the secret?", layers=[1, 3])
    found = activation_difference(acts, acts)
    assert not found.norm.any()
    assert not found.relative_norm.any()
    torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine))


def test_vectors_of_zeros_have_figures_too(model: TracedModel):
    acts = model.activations("What is the secret?", layers=[1])
    zero = dataclasses.replace(acts, vectors=torch.zeros_like(acts.vectors))
    found = activation_difference(zero, zero)
    for values in (found.norm, found.relative_norm, found.cosine):
        assert torch.isfinite(values).all()


def test_reads_of_other_tokens_have_no_difference(model: TracedModel):
    with pytest.raises(IncompatibleActivationsError, match="prompts"):
        activation_difference(
            model.activations("What is this?", layers=[1]),
            model.activations("What is that?", layers=[1]),
        )
