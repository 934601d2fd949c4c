"""The stream of batches: where it starts, how it is divided, what a pass is."""

import collections
import itertools

import pytest
import tiny
import torch
from tiny_examples import contract, examples

from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.stream import BatchStream

EXAMPLES = examples(60)


@pytest.fixture(scope="module")
def collator():
    model = TracedModel(tiny.model(), tiny.tokenizer())
    return ActivationCollator(model, contract(model.tokenizer), VectorTransform())


def stream(collator, **options):
    settings = {"batch_size": 4, "seed": 3, "window": 3}
    return BatchStream(collator, EXAMPLES, **(settings | options))


def take(count, batches):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return torch.equal(first.input_ids, second.input_ids) and torch.equal(
        first.injection.vectors, second.injection.vectors
    )


@pytest.mark.parametrize("start", [0, 1, 3, 7, 40])
def test_a_stream_started_later_goes_on_as_the_whole_one(collator, start):
    whole = take(start + 4, stream(collator))[start:]
    later = take(4, stream(collator, start=start))
    assert all(same(ours, theirs) for ours, theirs in zip(later, whole, strict=True))


def test_another_seed_gives_other_batches(collator):
    ours, theirs = take(3, stream(collator)), take(3, stream(collator, seed=4))
    assert not all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("batch_size", [4, 7])
def test_every_pass_has_every_example_once_and_the_first_keeps_their_order(collator, batch_size):
    made = stream(collator, batch_size=batch_size)
    size = made.window * batch_size
    indices = [i for window in range(30) for i in made.window_indices(window)]
    passes = [indices[start : start + 60] for start in range(0, len(indices) - 59, 60)]
    assert passes[0] == list(range(60))
    assert all(sorted(one) == passes[0] for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)
    # Contexts stay together: breaks in the order are those between stretches.
    for one in passes:
        breaks = sum(b != a + 1 for a, b in itertools.pairwise(one))
        assert breaks <= 60 // size + 1


def test_a_window_holds_no_example_twice_in_one_pass(collator):
    made = stream(collator, batch_size=16, window=16)
    assert made.window == 3
    counts = collections.Counter(made.window_indices(0))
    assert max(counts.values()) == 1


def test_fewer_examples_than_a_batch_are_repeated(collator):
    made = BatchStream(collator, EXAMPLES[:3], batch_size=8, seed=0)
    assert len(take(2, made)[1]) == 8


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_pieces_share_the_global_batches(collator, world_size, accumulation_steps):
    options = {"batch_size": 8, "window": 3}
    whole = take(4, stream(collator, **options))
    parts = [
        take(
            4 * accumulation_steps,
            stream(
                collator,
                **options,
                rank=rank,
                world_size=world_size,
                accumulation_steps=accumulation_steps,
            ),
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        first = step * accumulation_steps
        pieces = [piece for rank in parts for piece in rank[first : first + accumulation_steps]]
        rows = [ids[mask.bool()].tolist() for p in pieces for ids, mask in rows_of(p)]
        assert rows == [ids[mask.bool()].tolist() for ids, mask in rows_of(batch)]
        assert {piece.num_label_tokens for piece in pieces} == {len(batch.answer_rows)}
        vectors = torch.cat([piece.injection.vectors for piece in pieces])
        torch.testing.assert_close(vectors, batch.injection.vectors, atol=1e-5, rtol=1e-5)


def rows_of(batch):
    return zip(batch.input_ids, batch.attention_mask, strict=True)


def test_prompts_of_like_length_share_a_batch(collator):
    def padding(batches):
        return sum(int((batch.attention_mask == 0).sum()) for batch in batches)

    # Contexts of one window alone: sorted there, random across single-batch windows.
    assert padding(take(15, stream(collator, window=15))) < 0.5 * padding(
        take(15, stream(collator, window=1))
    )


def test_warm_up_steps_use_the_other_collator(collator):
    class Doubled(VectorTransform):
        def apply(self, vectors, **_):
            return 2 * vectors

    doubled = ActivationCollator(collator.model, collator.contract, Doubled())
    plain = take(6, stream(collator))
    warmed = take(6, stream(collator, warm_up_collator=doubled, warm_up_steps=4))
    for step, (ours, theirs) in enumerate(zip(warmed, plain, strict=True)):
        vectors = theirs.injection.vectors
        expected = 2 * vectors if step < 4 else vectors
        torch.testing.assert_close(ours.injection.vectors, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_divided_is_refused(collator):
    with pytest.raises(ValueError, match="choose a multiple of 6"):
        stream(collator, batch_size=8, world_size=2, accumulation_steps=3)
    with pytest.raises(ValueError, match="rank is 2"):
        stream(collator, rank=2, world_size=2)
    with pytest.raises(ValueError, match="no examples"):
        BatchStream(collator, [], batch_size=4, seed=0)
