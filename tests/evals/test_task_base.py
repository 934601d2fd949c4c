import dataclasses

import numpy as np
import pytest
import tiny_items
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from aotoolkit.errors import EvalError, ScoreError
from aotoolkit.evals import ArmAnswer
from aotoolkit.evals.metrics import named
from aotoolkit.evals.tasks.base import (
    as_turns,
    auroc_over_units,
    best_guess,
    chosen,
    common_suffix,
    names_only,
    preference,
    shifted,
    uniform_guess,
    with_replies,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def items(model):
    return tiny_items.items(model, 3)


def answer(item, text="", **scores):
    return ArmAnswer(item=item.id, arm="arm", text=text, scores=scores)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is Water.", {"water"}),
        ("waterfall, underwater", set()),
        ("Arabic pop", {"arabic pop"}),
        ("arabic pop, and pop too", {"arabic pop", "pop"}),
        ("C++!", {"c++"}),
        ("\uff37ater", {"water"}),  # a full-width W
        ("", set()),
    ],
)
def test_named(text, found):
    assert named(text, ["water", "Pop", "Arabic Pop", "C++"]) == found


def test_of_two_spellings_that_differ_by_case_either_is_named():
    assert names_only("J-POP", ["J-Pop"], ["rock"])
    assert not names_only("j-pop or rock", ["J-Pop"], ["rock"])
    assert not names_only("nothing", ["J-Pop"], ["rock"])


@given(st.text(), st.lists(st.text(min_size=1), max_size=5))
def test_named_gives_only_candidates(text, candidates):
    folded = named(text, candidates)

    assert folded <= {name for candidate in candidates for name in named(candidate, [candidate])}


def test_chosen_and_preference(items):
    item = items[0]  # choices: water, word, secret

    assert chosen(item, answer(item, "the WORD")) == "word"
    assert chosen(item, answer(item, "the word or water")) is None
    scored = answer(item, "word", water=1.0, word=0.5, secret=-np.inf)
    assert chosen(item, scored) == "water"  # scores, not the text
    assert preference(item, scored, "water") == 0.5
    assert preference(item, scored, "word") == -0.5
    assert preference(item, scored, "secret") == -np.inf
    nothing = answer(item, water=-np.inf, word=-np.inf, secret=-np.inf)
    assert preference(item, nothing, "water") == 0.0
    assert [preference(item, answer(item, "water"), c) for c in ("water", "word")] == [1.0, -1.0]
    assert preference(item, answer(item, "?"), "water") == 0.0


def test_chance_counts_units_once(items):
    # red, blue, red: half of the units have each word.
    assert best_guess(items) == pytest.approx(0.5)
    assert uniform_guess(items) == pytest.approx(1 / 3)
    other = dataclasses.replace(items[1], question="Another question?")
    assert best_guess([items[0], other]) == pytest.approx(1.0)  # the question gives it away


SCORES = st.lists(
    st.tuples(st.integers(-3, 3).map(float), st.booleans(), st.integers(0, 4)),
    min_size=2,
    max_size=40,
)


@given(SCORES)
def test_auroc_is_scikit_learns(entries):
    scores, labels, units = zip(*entries, strict=True)
    if len(set(labels)) < 2:
        with pytest.raises(ScoreError, match="one class"):
            auroc_over_units(scores, labels, units, unit="organism")
        return

    found = auroc_over_units(scores, labels, units, unit="organism", seed=3)

    assert found.mean == pytest.approx(roc_auc_score(labels, scores))
    assert 0 <= found.low <= found.mean + 1e-9 or found.low < found.high
    assert found.high <= 1
    assert found.n == len(set(units))


def test_auroc_interval_is_of_units_not_items():
    rng = np.random.default_rng(0)
    labels = [True, False] * 10
    scores = [float(label) + rng.normal() for label in labels]

    once = auroc_over_units(scores, labels, range(20), unit="person")
    copied = auroc_over_units(scores * 30, labels * 30, [*range(20)] * 30, unit="person")

    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.n == 20


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [((1.0, 0.0), 0.025**0.5, 1.0), ((0.0, 1.0), 0.0, 1 - 0.025**0.5), ((0.0, 0.0), 0.0, 1.0)],
)
def test_auroc_of_one_unit_a_class_says_little(scores, low, high):
    found = auroc_over_units(scores, (True, False), ("a", "b"), unit="organism")

    assert (found.low, found.high) == pytest.approx((low, high))


def test_auroc_refuses_nan_and_takes_infinity():
    with pytest.raises(ScoreError, match="NaN"):
        auroc_over_units([np.nan, 1.0], [True, False], "ab", unit="organism")
    assert auroc_over_units([np.inf, -np.inf], [True, False], "ab", unit="organism").mean == 1.0


@pytest.mark.parametrize(
    ("positions", "back", "expected"),
    [
        (None, 3, [0, 1, 2, 3, 4, 5, 6]),
        (slice(-3, None), 3, [4, 5, 6]),
        (slice(-3, -1), 3, [4, 5]),
        (slice(2, 4), 3, [2, 3]),
        (slice(2, None), 3, [2, 3, 4, 5, 6]),
        (None, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ((-1, 0), 3, [6, 0]),
    ],
)
def test_shifted(positions, back, expected):
    moved = shifted(positions, back)
    ids = list(range(10))

    taken = [ids[p] for p in moved] if isinstance(moved, tuple) else ids[moved or slice(None)]

    assert taken == expected


def test_common_suffix():
    assert common_suffix([[1, 2, 3], [9, 2, 3], [2, 3]]) == 2
    assert common_suffix([[1], [2]]) == 0


def test_replies_are_the_targets_own(model):
    specs = [tiny_items.spec(n, positions=None) for n in range(3)]

    made = with_replies(model, specs, max_new_tokens=6, batch_size=2)

    for spec, replied in zip(specs, made, strict=True):
        (*before, last) = replied.prompt
        assert tuple(before) == spec.prompt
        alone = model.generate(list(spec.prompt), adapter=spec.adapter, max_new_tokens=6)
        assert last == {"role": "assistant", "content": alone.strip()}
    assert made[0].prompt[-1] != made[1].prompt[-1]  # another adapter


def test_equal_prompts_are_replied_to_once(model, monkeypatch):
    rows = []
    generate = model.generate_ids

    def counting(ids, *args, **kwargs):
        rows.append(len(ids))
        return generate(ids, *args, **kwargs)

    monkeypatch.setattr(model, "generate_ids", counting)
    specs = [tiny_items.spec(0), tiny_items.spec(0, id="again"), tiny_items.spec(1)]

    with_replies(model, specs, max_new_tokens=2)

    assert sum(rows) == 2


@pytest.mark.parametrize(
    "prompt", ["a text", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
)
def test_only_a_chat_is_replied_to(model, prompt):
    with pytest.raises(EvalError, match="reply=False"):
        with_replies(model, [tiny_items.spec(prompt=prompt)], max_new_tokens=2)


def test_a_bare_text_is_the_users_turn():
    assert as_turns("Hi") == ({"role": "user", "content": "Hi"},)
    assert as_turns([{"role": "system", "content": "Hi"}]) == ({"role": "system", "content": "Hi"},)
