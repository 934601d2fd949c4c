"""The probe of the other units: what it is fitted on, and when it has nothing to say."""

import dataclasses

import numpy as np
import pytest
import tiny_items
import torch
from sklearn.linear_model import LogisticRegression

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.baselines import CrossFittedProbe

CHOICES = ("water", "word")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory):
    model = tiny_items.target(tmp_path_factory.mktemp("target"))
    return tiny_items.items(model, 1, choices=CHOICES, answers=("water",))[0]


def planted(read, labels: dict[str, str], *, prompts: int = 3, told: float = 1.0, seed: int = 0):
    """Items of a unit each, whose vectors hold the label in every direction."""
    rng = np.random.default_rng(seed)
    items = []
    for unit, label in labels.items():
        for prompt in range(prompts):
            vectors = rng.normal(size=tuple(read.activations.vectors.shape))
            vectors += told * (1 if label == CHOICES[0] else -1)
            acts = dataclasses.replace(read.activations, vectors=torch.tensor(vectors).float())
            items.append(
                dataclasses.replace(
                    read, id=f"{unit}/{prompt}", unit=unit, answers=(label,), activations=acts
                )
            )
    return items


def test_units_are_read_by_a_probe_of_the_others(read):
    items = planted(read, {"a": "water", "b": "word", "c": "water", "d": "word"})
    answers = CrossFittedProbe(regularisation=2.0).answer(items)
    assert [answer.choice for answer in answers] == [item.answers[0] for item in items]

    features = np.stack([item.activations.vectors.mean(1).flatten().numpy() for item in items])
    labels = np.array([item.answers[0] for item in items])
    mean, std = features[6:].mean(0), features[6:].std(0)  # of c and d, for a and b
    others = LogisticRegression(C=0.5, class_weight="balanced", max_iter=2000)
    others.fit((features[6:] - mean) / std, labels[6:])
    expected = others.predict_log_proba([(features[0] - mean) / std])[0]
    assert answers[0].scores == pytest.approx(
        dict(zip(others.classes_, expected, strict=True)), abs=1e-3
    )


def test_what_only_one_unit_has_is_not_learned_from_itself(read):
    # Each unit has a direction of its own and no label in common: nothing to be found in others.
    rng = np.random.default_rng(1)
    items = []
    for number, item in enumerate(
        planted(read, {str(n): CHOICES[n % 2] for n in range(16)}, told=0.0)
    ):
        direction = torch.tensor(rng.normal(size=item.activations.vectors.shape[-1]) * 5).float()
        if number % 3:
            direction = items[-1].details["direction"]
        acts = item.activations
        acts = dataclasses.replace(acts, vectors=acts.vectors + direction)
        items.append(dataclasses.replace(item, activations=acts, details={"direction": direction}))
    answers = CrossFittedProbe().answer(items)
    right = [a.choice in i.answers for a, i in zip(answers, items, strict=True)]
    assert np.mean(right) < 0.8


def test_it_is_at_chance_and_not_below_where_nothing_is_there(read):
    labels = {str(n): CHOICES[n % 2] for n in range(40)}
    shares = []
    for seed in range(5):
        items = planted(read, labels, prompts=1, told=0.0, seed=seed)
        answers = CrossFittedProbe().answer(items)
        shares += [a.choice in i.answers for a, i in zip(answers, items, strict=True)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_it_says_when_it_cannot_be_fitted(read):
    with pytest.raises(ArmNotApplicableError, match="only unit whose answer is 'word'"):
        CrossFittedProbe().answer(planted(read, {"a": "water", "b": "word", "c": "water"}))
    with pytest.raises(ArmNotApplicableError, match="have one answer"):
        CrossFittedProbe().answer(planted(read, {"a": "water", "b": "water"}))
    free = [dataclasses.replace(read, choices=())]
    with pytest.raises(ArmNotApplicableError, match="no choices"):
        CrossFittedProbe().answer(free)
    with pytest.raises(EvalError, match="above 0"):
        CrossFittedProbe(regularisation=0)
    assert CrossFittedProbe().answer([]) == []


def test_a_choice_that_nobody_has_is_the_least_likely(read):
    items = planted(read, {"a": "water", "b": "word", "c": "water", "d": "word"})
    items = [dataclasses.replace(item, choices=(*CHOICES, "secret")) for item in items]
    for answer in CrossFittedProbe().answer(items):
        assert min(answer.scores, key=lambda choice: answer.scores[choice]) == "secret"
        assert np.isfinite(answer.scores["secret"])
