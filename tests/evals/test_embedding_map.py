"""The embedding map, against ridge regression written out by hand."""

import dataclasses

import numpy as np
import pytest
import tiny_items
import torch

from aotoolkit.errors import EvalError, IncompatibleActivationsError
from aotoolkit.evals.baselines import EmbeddingMap

WORDS = ("water", "word", "secret", "hint", "Give", "me")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


def head(model) -> np.ndarray:
    return model.peft_model.get_base_model().lm_head.weight.detach().float().numpy()


def vector(model, word: str) -> np.ndarray:
    ids = model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return head(model)[ids].mean(0)


def with_mean(item, mean: np.ndarray):
    """An item whose vectors, at every layer read, have this mean over two positions."""
    acts = item.activations[-2:]
    about = torch.tensor(np.stack([mean - 1, mean + 1]), dtype=torch.float32)
    vectors = about.expand(len(acts.layers), *about.shape)
    return dataclasses.replace(item, activations=dataclasses.replace(acts, vectors=vectors))


def base_item(model, number: int, **changes):
    (item,) = tiny_items.items(model, 1, adapter=None, id=f"fit {number}", **changes)
    return item


def test_its_scores_are_those_of_ridge_regression_by_hand(model):
    rng = np.random.default_rng(0)
    width = head(model).shape[1]
    inputs = rng.normal(size=(len(WORDS), width)).astype(np.float32)
    acts = [
        with_mean(base_item(model, number), row).activations for number, row in enumerate(inputs)
    ]
    fitted = EmbeddingMap.fit(model, acts, WORDS, regularisation=2.0)

    goals = np.stack([vector(model, word) for word in WORDS])
    centre, scale = inputs.mean(0), inputs.std(0)
    x, y = (inputs - centre) / scale, goals - goals.mean(0)
    weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(width), x.T @ y)
    new = rng.normal(size=width).astype(np.float32)
    predicted = (new - centre) / scale @ weights
    expected = {}
    for word in tiny_items.CHOICES:
        candidate = vector(model, word) - goals.mean(0)
        lengths = np.linalg.norm(candidate) * np.linalg.norm(predicted)
        expected[word] = float(candidate @ predicted / lengths)

    (answer,) = fitted.answer([with_mean(base_item(model, 99), new)])
    assert answer.scores == pytest.approx(expected, abs=1e-4)
    assert answer.text == max(expected, key=lambda word: expected[word]) == answer.choice


def test_it_names_words_that_it_was_not_fitted_on(model):
    # What is read is the word's unembedding itself, turned: exactly linear.
    width = head(model).shape[1]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    vocabulary = [
        str(token)
        for token in (model.tokenizer.decode([i]).strip() for i in range(len(model.tokenizer)))
        if token.isalpha()
    ]
    unseen = tiny_items.CHOICES
    words = [word for word in dict.fromkeys(vocabulary) if word not in unseen]
    words = (words * (1 + 3 * width // len(words)))[: 3 * width]
    noise = np.random.default_rng(1).normal(scale=0.01, size=(len(words), width))
    acts = [
        with_mean(base_item(model, number), (vector(model, word) @ turn + extra) * 10).activations
        for number, (word, extra) in enumerate(zip(words, noise, strict=True))
    ]
    fitted = EmbeddingMap.fit(model, acts, words, regularisation=(1e-3, 1e3))
    assert not set(fitted.words) & set(unseen)
    for word in unseen:
        item = with_mean(base_item(model, 99), vector(model, word) @ turn * 10)
        (answer,) = fitted.answer([item])
        assert answer.text == word
        assert fitted.kind == "skyline"
    # Regularisation is chosen on words left out, and that of 1000 would be of no use here.
    assert fitted.fitted.get_params()["ridge__alpha"] == 1e-3


def test_a_free_answer_is_a_token_of_the_vocabulary(model):
    acts = [base_item(model, n).activations for n in range(len(WORDS))]
    acts = [
        with_mean(base_item(model, n), head(model)[n + 5]).activations for n in range(len(acts))
    ]
    fitted = EmbeddingMap.fit(model, acts, WORDS, regularisation=1.0, top_k=2)
    (answer,) = fitted.answer([base_item(model, 9, choices=(), answers=("water",))])
    assert len(answer.details["tokens"]) == 2
    assert not answer.scores


def test_what_it_cannot_be_fitted_on_or_asked_about(model):
    acts = [base_item(model, n).activations for n in range(3)]
    organism = tiny_items.items(model, 1)[0].activations
    with pytest.raises(EvalError, match="adapter=None"):
        EmbeddingMap.fit(model, [organism] * 3, WORDS[:3])
    with pytest.raises(EvalError, match="at least 3"):
        EmbeddingMap.fit(model, acts, [WORDS[0], WORDS[0], WORDS[1]])
    with pytest.raises(EvalError, match="one word for each"):
        EmbeddingMap.fit(model, acts, WORDS[:2], regularisation=1.0)
    fitted = EmbeddingMap.fit(model, acts, WORDS[:3], regularisation=1.0)
    with pytest.raises(IncompatibleActivationsError, match="layers"):
        fitted.answer(tiny_items.items(model, 1, layers=1))
    assert fitted.answer([]) == []
