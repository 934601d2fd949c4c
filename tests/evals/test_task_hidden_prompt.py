import dataclasses
from collections import Counter

import guessers
import pytest
import tiny
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import HiddenPrompt, HiddenSystemPrompt, read_hidden_prompts
from aotoolkit.evals.tasks.hidden_prompt import deal
from aotoolkit.tracing import TracedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


def prompts(count=9, turns="Give me a hint."):
    return [
        HiddenPrompt(label=f"l{n}", system=f"You are {n}.", turns=turns, answer=f"It is number {n}")
        for n in range(count)
    ]


@pytest.mark.parametrize("reply", [False, True])
def test_only_what_follows_the_system_turn_is_read(model, reply):
    task = HiddenSystemPrompt(prompts=prompts(), reply=reply, max_reply_tokens=3, layers=2)

    items = task.items(model)

    assert len(items) == 8  # two groups of four
    for item in items:
        read = "".join(item.activations.tokens)
        assert read.startswith("<|im_start|>user\nGive me a hint.")
        assert item.chat[0]["role"] == "system"
        count = len(item.activations)
        assert item.activations.token_ids == item.activations.context_ids[-count:]
        assert item.base_activations.token_ids == item.activations.token_ids
        assert "system" not in item.base_activations.text
        # What is read depends on the system turn, and the base's does not.
        assert not item.activations.vectors.equal(item.base_activations.vectors)


def test_each_candidate_is_right_once_in_its_group():
    specs = HiddenSystemPrompt(prompts=prompts(12), candidates=3, layers=2).specs()

    groups = Counter(spec.choices for spec in specs)
    assert set(groups.values()) == {3}
    for choices in groups:
        own = [spec for spec in specs if spec.choices == choices]
        assert {spec.answers[0] for spec in own} == set(choices)
        assert len({spec.question for spec in own}) == 1


def test_a_copy_with_other_batches_asks_the_same():
    task = HiddenSystemPrompt(prompts=prompts(12), candidates=3, layers=2)
    copy = dataclasses.replace(task, batch_size=7)
    assert copy.specs() == task.specs()
    assert copy.batch_size == 7


def test_free_answers_go_to_the_nearest_candidate(model):
    task = HiddenSystemPrompt(prompts=prompts(), layers=2)
    item = task.items(model)[0]
    own = item.answers[0]
    other = next(choice for choice in item.choices if choice != own)
    say = lambda text: task.score(item, guessers.answers([item], guessers.constant(text))[0])  # noqa: E731

    assert [say(text) for text in (own, own.split()[-1], other, "It is number", "")] == [
        1,
        1,
        0,
        0,
        0,
    ]


def test_a_template_that_writes_other_tokens_without_system_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] if m['role'] == 'system' else "
        "(m['content'] + ('.' if messages[0]['role'] == 'system' else '!')) }}{% endfor %}"
    )
    model = TracedModel(tiny.model(), tokenizer)

    with pytest.raises(EvalError, match="no base to compare"):
        HiddenSystemPrompt(prompts=prompts(), layers=2).items(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": 1},
        {"candidates": 20},
        {"positions": (-1,)},
        {"prompts": []},
        {"groups": [prompts(2)]},  # beside prompts
        {"prompts": (), "groups": [prompts(1)]},
        {"prompts": (), "groups": [[*prompts(1), *prompts(1)]]},
    ],
)
def test_impossible_settings(changes):
    with pytest.raises(EvalError):
        HiddenSystemPrompt(**({"prompts": prompts(), "layers": 2} | changes))


def test_groups_never_hold_a_label_twice():
    same = prompts(6) + [
        HiddenPrompt(label="l0", system="x", turns="y", answer="another") for _ in range(6)
    ]

    for group in deal(same, size=2, seed=0):
        assert len({prompt.label for prompt in group}) == 2


def of_categories(count=12, categories=3):
    return [
        HiddenPrompt(
            label=f"l{n}", system=f"{n}", turns="Hi", answer=f"n{n}", category=str(n % categories)
        )
        for n in range(count)
    ]


def test_near_prompts_are_of_one_category_and_far_ones_of_different():
    near = deal(of_categories(), size=2, seed=0, distance="near")
    far = deal(of_categories(), size=3, seed=0, distance="far")

    assert len(near) == 6  # all of them
    assert all(len({prompt.category for prompt in group}) == 1 for group in near)
    assert len(far) == 4
    assert all(len({prompt.category for prompt in group}) == 3 for group in far)
    assert deal(of_categories(), size=4, seed=0, distance="far") == []
    assert deal(of_categories(categories=12), size=2, seed=0, distance="near") == []


def test_groups_are_asked_as_they_are_given():
    groups = deal(of_categories(), size=2, seed=0, distance="near")
    specs = HiddenSystemPrompt(groups=groups, layers=2).specs()

    assert [spec.choices for spec in specs[::2]] == [
        tuple(prompt.answer for prompt in group) for group in groups
    ]


def test_published_prompts(shared, model):
    found = read_hidden_prompts(shared / "data" / "latentqa")

    assert len(found) == 567
    task = HiddenSystemPrompt(prompts=found, layers=2)
    assert len(task.specs()) > 540
    assert sum(len({p.question for p in group}) == 1 for group in task.dealt) > 50
    assert {"persona-time", "goal-emotion"} <= {prompt.category for prompt in found}
    assert len(deal(found, size=4, seed=0, distance="near")) > 50
