"""What is added to training vectors: how much, of what, and when."""

import dataclasses

import pytest
import tiny
import torch
from tiny_examples import contract, examples

from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.distraction import Distraction
from aotoolkit.training.stream import BatchStream

EXAMPLES = examples(40)


@pytest.fixture(scope="module")
def collator():
    model = TracedModel(tiny.model(), tiny.tokenizer())
    return ActivationCollator(model, contract(model.tokenizer), VectorTransform())


@pytest.fixture(scope="module")
def distraction(collator):
    return Distraction(collator, EXAMPLES, most=0.8, num_steps=10, seed=5)


def added(distraction, collator, example, **where):
    """What is added to each vector, `l p d`, in units of the vector's length, and the vectors."""
    (vectors,) = collator.vectors([example])
    before = vectors.unflatten(0, (len(example.layers), -1))
    after = distraction.added(example, vectors, **where).unflatten(0, before.shape[:2])
    return (after - before) / before.norm(dim=-1, keepdim=True)


def test_nothing_is_added_at_first_and_never_more_than_the_most(distraction, collator):
    for example in EXAMPLES[:8]:
        assert added(distraction, collator, example, step=0, row=1).abs().max() == 0
    parts = [
        [
            float(added(distraction, collator, EXAMPLES[0], step=step, row=row).norm(dim=-1).max())
            for row in range(60)
        ]
        for step in (5, 10, 1000)
    ]
    for most, seen in zip((0.4, 0.8, 0.8), parts, strict=True):
        assert 0.8 * most < max(seen) <= most + 1e-5
        assert min(seen) < 0.2 * most


def test_one_direction_for_all_positions_of_a_layer_the_mean_of_another_example(
    distraction, collator
):
    example = next(e for e in EXAMPLES if len(e.layers) == 2 and len(e.positions) == 3)
    part = added(distraction, collator, example, step=10, row=3)
    torch.testing.assert_close(part, part[:, :1].expand_as(part), atol=1e-5, rtol=1e-4)
    for index, layer in enumerate(example.layers):
        means = [
            vectors.unflatten(0, (len(other.layers), -1)).mean(1)[other.layers.index(layer)]
            for other, vectors in zip(EXAMPLES, collator.vectors(EXAMPLES), strict=True)
            if layer in other.layers
        ]
        likeness = torch.cosine_similarity(part[index, 0], torch.stack(means))
        assert likeness.max() > 0.9999


def test_step_and_row_decide_what_is_added(distraction, collator):
    seen = [
        added(distraction, collator, EXAMPLES[0], step=step, row=row)
        for step, row in ((7, 2), (7, 2), (7, 3), (8, 2))
    ]
    torch.testing.assert_close(seen[0], seen[1], atol=0, rtol=0)
    assert not torch.allclose(seen[0], seen[2])
    assert not torch.allclose(seen[0], seen[3])


def test_what_is_made_instead_of_read_stays_as_it_is_and_is_added_to_nothing(collator):
    made = [
        dataclasses.replace(example, evidence=evidence)
        for example, evidence in zip(EXAMPLES[:2], ("zero", "random"), strict=True)
    ]
    distraction = Distraction(collator, made, most=1.0, num_steps=1, seed=0)
    for example in (*made, EXAMPLES[3]):
        (vectors,) = collator.vectors([example])
        assert torch.equal(distraction.added(example, vectors, step=9, row=0), vectors)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_stream_adds_the_same_wherever_it_starts_and_however_it_is_divided(
    collator, distraction, start, world_size
):
    def take(count, **options):
        stream = BatchStream(
            collator, EXAMPLES, batch_size=4, seed=3, window=3, distraction=distraction, **options
        )
        iterator = iter(stream)
        return [next(iterator) for _ in range(count)]

    whole = take(8)
    parts = [
        take(8 - start, start=start, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in range(8 - start):
        vectors = torch.cat([rank[step].injection.vectors for rank in parts])
        expected = whole[start + step].injection.vectors
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    plain = next(iter(BatchStream(collator, EXAMPLES, batch_size=4, seed=3, window=3, start=7)))
    assert not torch.allclose(plain.injection.vectors, whole[7].injection.vectors)


def test_warm_up_steps_are_left_as_they_are(collator, distraction):
    options = {"batch_size": 4, "seed": 3, "window": 3, "warm_up_steps": 5}
    streams = [
        iter(BatchStream(collator, EXAMPLES, distraction=one, **options))
        for one in (distraction, None)
    ]
    for step in range(8):
        ours, plain = (next(stream).injection.vectors for stream in streams)
        assert torch.equal(ours, plain) == (step < 5)
