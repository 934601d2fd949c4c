"""Batches hold the base's activations, whatever is trained on top of it."""

import dataclasses

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny_examples import contract, examples

from aotoolkit.data import Example
from aotoolkit.errors import ContextLengthError
from aotoolkit.oracle.evidence import transformed
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.loss import answer_logits, oracle_loss


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


def test_labels_are_the_answers_and_padding_the_right(model, collator):
    batch = collator(examples(10))
    for row, (ids, mask, labels) in enumerate(
        zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
    ):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        answer = labels[labels != -100]
        assert model.tokenizer.decode(answer).startswith("A hint.<|im_end|>")
        assert torch.equal(ids[mask.bool()][-len(answer) :], answer)
        assert torch.equal(batch.answer_ids[batch.answer_rows == row], answer)
        assert torch.equal(labels[batch.answer_cols[batch.answer_rows == row]], answer)
    assert batch.num_label_tokens == len(batch.answer_ids)


def test_position_ids_are_given_only_where_the_contract_shifts_them(model, collator):
    drawn = examples(10)
    assert collator(drawn).position_ids is None
    shifted = dataclasses.replace(collator.contract, position_ids="shifted")
    batch = ActivationCollator(model, shifted, VectorTransform())(drawn)
    for example, ids, mask in zip(drawn, batch.position_ids, batch.attention_mask, strict=True):
        first = max(0, example.positions[0] - 1)
        assert ids[mask.bool()].tolist() == list(range(first, first + int(mask.sum())))


def test_zero_evidence_is_zeros_and_is_not_read(model, collator, monkeypatch):
    monkeypatch.setattr(model, "residuals", None)  # would fail if called
    for example, vectors in zip(
        drawn := examples(6, evidence="zero"), collator.vectors(drawn), strict=True
    ):
        assert vectors.shape == (len(example.positions) * len(example.layers), model.d_model)
        assert not vectors.any()


def test_random_evidence_has_the_norms_and_nothing_else_of_what_stands_there(collator):
    drawn = examples(20)
    made = [dataclasses.replace(example, evidence="random") for example in drawn]
    real, noise = collator.vectors(drawn), collator.vectors(made)
    for ours, theirs in zip(noise, real, strict=True):
        torch.testing.assert_close(ours.norm(dim=-1), theirs.norm(dim=-1))
    similarity = torch.cosine_similarity(torch.cat(noise), torch.cat(real))
    assert similarity.mean().abs() < 0.1
    # The same example has the same vectors in any company.
    torch.testing.assert_close(collator.vectors(made[7:8])[0], noise[7])
    assert not torch.allclose(noise[0][0], noise[1][0], atol=1e-2)


def test_a_context_runs_once_and_no_further_than_it_is_read(model, collator, monkeypatch):
    ids = tuple(range(3, 60))
    one = examples(1 + 1)[0]
    drawn = [
        dataclasses.replace(one, context_ids=ids, positions=positions, layers=layers)
        for positions, layers in [((3, 5), (1,)), ((20,), (1, 2)), ((5, 9), (2,))]
    ]
    runs = []
    original = model.residuals

    def residuals(input_ids, mask, **options):
        runs.append((tuple(input_ids.shape), options["layers"], options["adapter"]))
        return original(input_ids, mask, **options)

    monkeypatch.setattr(model, "residuals", residuals)
    vectors = collator.vectors(drawn)
    assert runs == [((1, 21), (1, 2), None)]
    for example, ours in zip(drawn, vectors, strict=True):
        torch.testing.assert_close(ours, hooked(model, example), atol=1e-5, rtol=1e-5)


def test_vectors_are_transformed_as_in_asking(model):
    drawn = examples(8)
    torch.manual_seed(0)
    transform = VectorTransform(
        "centred_by_token",
        (1, 2),
        mean=torch.randn(2, model.d_model),
        token_mean=torch.randn(2, tiny.VOCABULARY, model.d_model).half(),
    )
    collator = ActivationCollator(model, contract(model.tokenizer), transform)
    for example, ours in zip(drawn, collator.vectors(drawn), strict=True):
        acts = model.activations(
            list(example.context_ids), layers=example.layers, positions=example.positions
        )
        asked = transformed(acts, acts.layers, acts.vectors, transform)
        torch.testing.assert_close(ours, asked.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_an_oracle_learns_with_the_mean_and_recalls_when_it_is_asked(lab):
    recalling = lab.oracle.transform
    assert recalling.kind == "mapped_recalled"
    chat = [{"role": "user", "content": "Give me a hint."}]
    acts = lab.model.activations(chat, layers=[2, 6])
    example = Example(
        context_ids=acts.context_ids,
        positions=acts.positions,
        layers=acts.layers,
        question="What is the secret word?",
        answer="The carp.",
        source="test",
    )
    collator = ActivationCollator(lab.model, lab.oracle.contract, recalling)
    learned = collator.vectors([example])[0].view_as(acts.vectors)
    options = {"layers": acts.layers, "token_ids": acts.token_ids}
    pooled = dataclasses.replace(
        recalling, kind="mapped_pooled", answers=None, keys=None, key_mean=None, key_spread=None
    )
    torch.testing.assert_close(learned, pooled.apply(acts.vectors, **options), atol=1e-5, rtol=1e-4)
    asked = transformed(acts, acts.layers, acts.vectors, recalling)
    torch.testing.assert_close(asked, recalling.apply(acts.vectors, **options))
    assert not torch.allclose(learned, asked, atol=1e-3)


def test_a_prompt_longer_than_the_context_is_refused(collator):
    example = dataclasses.replace(examples(2)[0], question="why " * tiny.CONTEXT)
    with pytest.raises(ContextLengthError, match=r"'test' has \d+ tokens.*is 256"):
        collator([example])


@pytest.mark.parametrize("max_tokens", [1, 50, 100, 10_000])
def test_pieces_of_a_batch_have_its_loss_and_gradients(model, collator, max_tokens):
    batch = collator(sorted(examples(10), key=lambda e: len(collator.prompt(e).token_ids)))
    pieces = batch.split(max_tokens)
    assert sum(map(len, pieces)) == len(batch)
    for piece in pieces:
        assert len(piece) == 1 or piece.input_ids.numel() <= max_tokens
        assert piece.attention_mask[:, -1].any()
    model.add_adapter("oracle", LoraConfig(r=4, target_modules="all-linear"))
    head = model.hf_model.get_output_embeddings()
    trained = [p for p in model.hf_model.parameters() if p.requires_grad]

    def backward(part):
        logits, labels = answer_logits(model.hf_model, part, block=model.blocks[0], head=head)
        loss = oracle_loss(logits, labels, part.num_label_tokens)
        loss.backward()
        return loss.item()

    with model.using("oracle"):
        expected = backward(batch)
        gradients = [p.grad.clone() for p in trained]
        model.hf_model.zero_grad()
        assert sum(map(backward, pieces)) == pytest.approx(expected, rel=1e-4)
    assert any(gradient.any() for gradient in gradients)
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
