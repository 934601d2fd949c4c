"""Held-out figures against the same worked out one example at a time."""

import dataclasses

import pytest
import tiny
import torch
from peft import LoraConfig
from sklearn.metrics import roc_auc_score
from tiny_examples import contract, examples

from aotoolkit.errors import BatchTooLargeError, NonFiniteError
from aotoolkit.oracle.injection import Injection, injecting
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.validation import (
    ValidationFigures,
    figures_of,
    rounds_without_gain,
    score_examples,
)


@pytest.fixture(scope="module")
def model():
    made = TracedModel(tiny.model(num_layers=3), tiny.tokenizer())
    made.add_adapter("oracle", LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in made.hf_model.named_parameters():
        if ".oracle." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture(scope="module")
def collator(model):
    return ActivationCollator(model, contract(model.tokenizer), VectorTransform())


@pytest.fixture(scope="module")
def held_out():
    drawn = examples(30, seed=3)
    answers = ("Yes", "No")
    made = [
        dataclasses.replace(e, answer=answers[i % 3 == 0], choices=answers, source="choice")
        for i, e in enumerate(drawn[:16])
    ]
    return made + drawn[16:]


def scores(model, collator, held_out, **options):
    settings = {
        "block": model.blocks[0],
        "head": model.hf_model.lm_head,
        "batch_size": 4,
        "tokens_per_pass": 4096,
    }
    with model.using("oracle"):
        return score_examples(model.hf_model, collator, held_out, **(settings | options))


def one_by_one(model, collator, example, answer, *, inject):
    """Log-probabilities of an answer's tokens, and whether each is the likeliest."""
    example = dataclasses.replace(example, answer=answer)
    prompt = collator.prompt(example)
    (vectors,) = collator.vectors([example])
    cols = torch.tensor(prompt.placeholder_positions)
    injection = Injection(
        vectors=vectors, rows=torch.zeros_like(cols), cols=cols, formula="add_norm_matched"
    )
    ids = torch.tensor([prompt.token_ids])
    with model.inference("oracle"):
        if inject:
            with injecting(model.blocks[0], injection):
                logits = model.hf_model(input_ids=ids).logits[0]
        else:
            logits = model.hf_model(input_ids=ids).logits[0]
    start = prompt.answer_start
    predicted = logits[start - 1 : -1].log_softmax(-1)
    targets = ids[0, start:]
    return predicted.gather(1, targets[:, None])[:, 0], predicted.argmax(-1) == targets


def test_a_pass_has_no_more_tokens_than_are_allowed(model, collator, held_out):
    sizes = []
    whole = figures_of(held_out, scores(model, collator, held_out))
    handle = model.hf_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = figures_of(held_out, scores(model, collator, held_out, tokens_per_pass=70))
    handle.remove()
    assert max(sizes) <= 70
    assert found.overall.loss == pytest.approx(whole.overall.loss, abs=1e-5)
    assert found.sources["choice"].auc == whole.sources["choice"].auc


def test_each_prompt_is_written_once(model, collator, held_out, monkeypatch):
    written = []
    prompt = collator.prompt
    monkeypatch.setattr(collator, "prompt", lambda example: written.append(1) or prompt(example))
    scores(model, collator, held_out)
    assert len(written) == sum(max(1, len(example.choices)) for example in held_out)


def test_out_of_memory_says_what_to_lower(model, collator, held_out):
    def scarce(_module, _args, kwargs):
        if kwargs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    handle = model.hf_model.register_forward_pre_hook(scarce, with_kwargs=True)
    with pytest.raises(BatchTooLargeError, match=r"held-out .* Set tokens_per_pass=\d+"):
        scores(model, collator, held_out)
    handle.remove()


@pytest.mark.parametrize("inject", [True, False])
def test_figures_are_those_of_one_example_at_a_time(model, collator, held_out, inject):
    figures = figures_of(held_out, scores(model, collator, held_out))
    suffix = "" if inject else "_without"
    own = [one_by_one(model, collator, e, e.answer, inject=inject) for e in held_out]
    flat = torch.cat([log_probs for log_probs, _ in own])
    loss = getattr(figures.overall, f"loss{suffix}")
    assert loss == pytest.approx(-flat.mean().item(), abs=1e-4)
    exact = sum(bool(right.all()) for _, right in own) / len(own)
    assert getattr(figures.overall, f"exact_match{suffix}") == exact
    chosen = [e for e in held_out if e.choices]
    odds = [
        sum(
            sign * one_by_one(model, collator, e, choice, inject=inject)[0].sum().item()
            for sign, choice in zip((-1, 1), e.choices, strict=True)
        )
        for e in chosen
    ]
    auc = roc_auc_score([e.answer == e.choices[1] for e in chosen], odds)
    assert getattr(figures.sources["choice"], f"auc{suffix}") == pytest.approx(auc)


def test_the_vectors_change_the_figures(model, collator, held_out):
    figures = figures_of(held_out, scores(model, collator, held_out)).overall
    assert abs(figures.loss - figures.loss_without) > 1e-3


def test_auc_needs_two_choices_that_both_occur(model, collator, held_out):
    figures = figures_of(held_out, scores(model, collator, held_out))
    assert figures.sources["choice"].auc is not None
    assert figures.sources["test"].auc is None
    assert figures.overall.auc is None
    yes = [e for e in held_out if e.answer == "Yes"]
    assert figures_of(yes, scores(model, collator, yes)).overall.auc is None


def test_processes_share_the_examples_out(model, collator, held_out):
    whole = figures_of(held_out, scores(model, collator, held_out))
    parts = [scores(model, collator, held_out, rank=rank, world_size=3) for rank in range(3)]
    joined = {inject: [s for part in parts for s in part[inject]] for inject in (True, False)}
    assert figures_of(held_out, joined) == whole


def test_figures_survive_json(model, collator, held_out):
    figures = figures_of(held_out, scores(model, collator, held_out))
    assert ValidationFigures.from_dict({"step": 3, **figures.to_dict()}) == figures
    curves = figures.curves()
    assert curves["eval_choice/auc_without"] == figures.sources["choice"].auc_without
    assert "eval_test/auc" not in curves


@pytest.mark.parametrize(
    ("losses", "stale"),
    [([], 0), ([1.0], 0), ([2.0, 1.0], 0), ([1.0, 1.0], 1), ([1.0, 2.0, 0.5, 0.6, 0.7], 2)],
)
def test_rounds_without_gain(losses, stale):
    assert rounds_without_gain(losses) == stale


def test_a_figure_that_is_no_number_is_no_figure(model, collator, held_out):
    found = scores(model, collator, held_out)
    index = found[True][3].index
    bad = dataclasses.replace(found[True][3], log_prob=float("nan"))
    broken = {True: [*found[True][:3], bad, *found[True][4:]], False: found[False]}
    with pytest.raises(NonFiniteError, match=f"held-out example {index} "):
        figures_of(held_out, broken)
