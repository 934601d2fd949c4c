"""Batches hold the base's activations, whatever is trained on top of it."""

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny_examples import contract, draw, examples

from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator, BatchStream


@pytest.fixture
def model():
    return TracedModel(tiny.model(), tiny.tokenizer())


@pytest.fixture
def collator(model):
    return ActivationCollator(model, contract(model.tokenizer), VectorTransform())


def hooked(model, example):
    """The vectors of an example by plain forward hooks, one context at a time."""
    kept = {}
    handles = [
        model.blocks[layer].register_forward_hook(
            lambda _m, _a, output, layer=layer: kept.__setitem__(
                layer, output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in example.layers
    ]
    with torch.no_grad():
        model.hf_model(input_ids=torch.tensor([example.context_ids]))
    for handle in handles:
        handle.remove()
    return torch.cat([kept[layer][0, list(example.positions)] for layer in example.layers])


def test_vectors_equal_those_of_plain_hooks(model, collator):
    drawn = examples(20)
    for example, vectors in zip(drawn, collator.vectors(drawn), strict=True):
        torch.testing.assert_close(vectors, hooked(model, example), atol=1e-5, rtol=1e-5)


def test_vectors_are_the_bases_while_an_adapter_is_live(model, collator):
    drawn = examples(6)
    before = collator.vectors(drawn)
    model.add_adapter("oracle", LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.hf_model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    with model.using("oracle"):
        changed = hooked(model, drawn[0])
        after = collator.vectors(drawn)
    assert not torch.allclose(changed, before[0], atol=1e-2), "the adapter changes nothing"
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_every_vector_goes_to_a_placeholder_of_its_row(model, collator):
    drawn = examples(10)
    batch = collator(drawn)
    placeholder = collator.contract.placeholder_id
    at = batch.input_ids[batch.injection.rows, batch.injection.cols]
    assert (at == placeholder).all()
    counts = torch.bincount(batch.injection.rows, minlength=len(drawn)).tolist()
    assert counts == [len(e.positions) * len(e.layers) for e in drawn]
    torch.testing.assert_close(batch.injection.vectors, torch.cat(collator.vectors(drawn)))


def test_labels_are_the_answer_at_the_right_and_padding_the_left(model, collator):
    batch = collator(examples(10))
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        assert mask.tolist() == sorted(mask.tolist())
        answer = labels[labels != -100]
        assert model.tokenizer.decode(answer).startswith("A hint.<|im_end|>")
        assert torch.equal(ids[-len(answer) :], answer)
    first = (batch.labels != -100).any(0).nonzero()[0].item()
    assert batch.num_label_columns == batch.labels.shape[1] - first
    assert (batch.position_ids[:, -1] == batch.attention_mask.sum(-1) - 1).all()


def stream(collator, **options):
    return BatchStream(collator, draw, batch_size=4, seed=3, window=3, **options)


def same(first, second):
    return torch.equal(first.input_ids, second.input_ids) and torch.equal(
        first.injection.vectors, second.injection.vectors
    )


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_a_stream_started_later_goes_on_as_the_whole_one(collator, start):
    whole = iter(stream(collator))
    batches = [next(whole) for _ in range(start + 4)][start:]
    later = iter(stream(collator, start=start))
    assert all(same(batch, next(later)) for batch in batches)


def test_warm_up_steps_use_the_other_collator(model, collator):
    class Doubled(VectorTransform):
        def apply(self, vectors, **_):
            return 2 * vectors

    doubled = ActivationCollator(model, collator.contract, Doubled())
    plain = iter(stream(collator))
    warmed = iter(stream(collator, warm_up_collator=doubled, warm_up_steps=3))
    for step in range(6):
        ours, theirs = next(warmed).injection.vectors, next(plain).injection.vectors
        torch.testing.assert_close(ours, 2 * theirs if step < 3 else theirs)
