"""The formulas against loops written from the papers; the hook against its many ways to miss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aotoolkit.errors import InjectionError
from aotoolkit.oracle.injection import Injection, injecting


def by_hand(hidden, vectors, places, formula, coefficient, scale):
    result = hidden.clone()
    for vector, (row, col) in zip(vectors, places, strict=True):
        h = hidden[row, col]
        added = h + coefficient * h.norm() * vector / vector.norm()
        if formula == "replace":
            result[row, col] = vector
        elif formula == "add_norm_matched":
            result[row, col] = added
        else:
            result[row, col] = added * scale * h.norm() / added.norm()
    return result


def make(vectors, places, formula="add_norm_matched", **options):
    rows, cols = torch.tensor(places).reshape(-1, 2).T
    return Injection(vectors=vectors, rows=rows, cols=cols, formula=formula, **options)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    formula=st.sampled_from(["add_norm_matched", "replace", "add_rescaled"]),
    coefficient=st.floats(0.1, 4),
    scale=st.floats(0.5, 3),
    places=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4)), unique=True, min_size=1, max_size=8
    ),
)
def test_formulas(seed, formula, coefficient, scale, places):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, 8, generator=generator)
    vectors = torch.randn(len(places), 8, generator=generator) * 7
    before = hidden.clone()
    result = make(vectors, places, formula, coefficient=coefficient, final_scale=scale)(hidden)
    expected = by_hand(hidden, vectors, places, formula, coefficient, scale)
    torch.testing.assert_close(result, expected)
    assert torch.equal(hidden, before), "the residual stream was changed in place"


def test_a_zero_vector_adds_nothing():
    hidden = torch.randn(1, 3, 8)
    assert torch.equal(make(torch.zeros(1, 8), [(0, 1)])(hidden), hidden)


def test_no_vectors_leave_the_stream_alone():
    hidden = torch.randn(1, 3, 8)
    assert torch.equal(make(torch.zeros(0, 8), [])(hidden), hidden)


def test_half_precision_stays_half_precision():
    hidden = torch.randn(1, 3, 8).bfloat16()
    for formula in ("add_norm_matched", "replace", "add_rescaled"):
        assert make(torch.randn(1, 8), [(0, 1)], formula)(hidden).dtype == torch.bfloat16


def test_the_norm_carries_no_gradient():
    hidden = torch.randn(1, 2, 8, requires_grad=True)
    make(torch.randn(1, 8), [(0, 1)])(hidden).sum().backward()
    assert torch.equal(hidden.grad, torch.ones_like(hidden)), "d(h + const)/dh is 1"


def test_gradients_reach_vectors_that_ask_for_them():
    for formula in ("add_norm_matched", "replace", "add_rescaled"):
        vectors = torch.randn(1, 8, requires_grad=True)
        (make(vectors, [(0, 1)], formula)(torch.randn(1, 2, 8)) ** 3).sum().backward()
        assert vectors.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("vectors", "places", "message"),
    [
        (torch.zeros(2, 8), [(0, 1), (0, 1)], "same row"),
        (torch.zeros(1, 8), [(0, 1), (0, 2)], "2 places"),
        (torch.zeros(1, 8), [(0, -1)], "0 or more"),
        (torch.full((1, 8), torch.nan), [(0, 1)], "NaN"),
        (torch.full((1, 8), torch.inf), [(0, 1)], "NaN or Inf"),
        (torch.zeros(8), [(0, 1)], "shapes"),
    ],
)
def test_what_cannot_be_injected_is_refused(vectors, places, message):
    with pytest.raises(InjectionError, match=message):
        make(vectors, places)


@pytest.mark.parametrize("place", [(3, 0), (0, 5)])
def test_places_outside_the_batch_are_refused(place):
    with pytest.raises(InjectionError, match="outside"):
        make(torch.zeros(1, 8), [place])(torch.zeros(3, 5, 8))


def test_another_width_is_refused():
    with pytest.raises(InjectionError, match="width"):
        make(torch.zeros(1, 6), [(0, 0)])(torch.zeros(3, 5, 8))


class Tupled(nn.Module):
    def forward(self, hidden):
        return hidden, "cache"


def test_tuple_outputs_keep_their_tail():
    block = Tupled()
    with injecting(block, make(torch.ones(1, 8), [(0, 1)], "replace")):
        hidden, tail = block(torch.zeros(1, 3, 8))
    assert tail == "cache"
    assert hidden[0, 1].sum() == 8
    assert block(torch.zeros(1, 3, 8))[0].sum() == 0, "the hook was left on"


def test_decoding_steps_are_left_alone():
    block = nn.Identity()
    with injecting(block, make(torch.ones(1, 8), [(0, 0)], "replace")):
        assert block(torch.zeros(1, 3, 8)).sum() == 8
        assert block(torch.zeros(1, 1, 8)).sum() == 0
        assert block(torch.zeros(1, 4, 8)).sum() == 8, "without a cache the prompt comes again"


def test_a_block_that_does_not_run_is_an_error():
    with (
        pytest.raises(InjectionError, match="did not run"),
        injecting(nn.Identity(), make(torch.ones(1, 8), [(0, 0)])),
    ):
        pass


def test_the_hook_goes_when_the_body_fails():
    block = nn.Identity()
    with (
        pytest.raises(KeyError),
        injecting(block, make(torch.ones(1, 8), [(0, 0)], "replace")),
    ):
        raise KeyError
    assert block(torch.zeros(1, 3, 8)).sum() == 0
