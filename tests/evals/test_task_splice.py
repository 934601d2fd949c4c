import guessers
import pytest
import tiny
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import SpliceGroup, StateNotTokens

TAIL = [{"role": "user", "content": "Give me a hint."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


def group(name="g", answers=("water", "word")):
    return SpliceGroup(
        name=name,
        prompts={word: [{"role": "system", "content": f"It is {word}"}, *TAIL] for word in answers},
        question="What is it?",
    )


def task_of(**changes):
    values = {"groups": [group("g"), group("h")], "tokenizer": tiny.tokenizer(), "layers": 2}
    return StateNotTokens(**(values | changes))


@pytest.mark.parametrize("positions", [None, (-1,), slice(-5, None), slice(-5, -2)])
def test_both_halves_are_read_at_the_same_tokens(model, positions):
    items = task_of(positions=positions).items(model)

    for one, other in (items[:2], items[2:]):
        assert one.activations.token_ids == other.activations.token_ids
        assert one.activations.context_ids != other.activations.context_ids
        assert not one.activations.vectors.equal(other.activations.vectors)
        # What the tokens alone give is the same for both.
        assert one.base_activations.token_ids == one.activations.token_ids
        assert one.base_activations.vectors.equal(other.base_activations.vectors)


def figure(task, items, texts):
    given = [
        guessers.answers([i], guessers.constant(t))[0] for i, t in zip(items, texts, strict=True)
    ]
    return task.estimate(items, given, seed=0).mean


def test_an_answer_given_to_both_halves_does_not_count(model):
    task = task_of()
    items = task.items(model)

    assert figure(task, items, ["water", "word", "water", "word"]) == 1.0
    assert figure(task, items, ["word", "water", "word", "water"]) == 0.0
    assert figure(task, items, ["water", "water", "word", "word"]) == 0.0
    assert figure(task, items, ["water", "stone", "stone", "stone"]) == 0.25
    right = [
        task.secondary_score("right", i, guessers.answers([i], guessers.constant("water"))[0])
        for i in items
    ]
    assert right == [1, 0, 1, 0]


def test_free_answers_that_differ_in_case_only_are_alike(model):
    task = task_of(choices=False)
    items = task.items(model)

    assert items[0].choices == ()
    assert figure(task, items, ["It is water.", "it is WATER", "a word", "A word!"]) == 0.0
    assert figure(task, items, ["It is water.", "it is a word", "?", "!"]) == 0.5


def test_three_halves(model):
    task = task_of(groups=[group(answers=("water", "word", "secret"))])
    items = task.items(model)

    assert figure(task, items, ["water", "word", "secret"]) == 1.0
    assert figure(task, items, ["water", "water", "secret"]) == pytest.approx(1 / 3)
    assert task.chance(items) == pytest.approx(1 / 3 * (2 / 3) ** 2)


def test_an_upstream_edit_makes_a_group():
    made = SpliceGroup.edited(
        name="g",
        prompt=[{"role": "system", "content": "It is {edit}. {0}"}, *TAIL],
        edits={"water": "wet", "word": "said"},
        question="What?",
    )

    assert [prompt[0]["content"] for prompt in made.prompts.values()] == [
        "It is wet. {0}",
        "It is said. {0}",
    ]
    assert made.prompts["water"][1:] == TAIL
    with pytest.raises(EvalError, match="once"):
        SpliceGroup.edited(name="g", prompt="no place", edits={"a": "b"}, question="?")


@pytest.mark.parametrize(
    "positions", [(-1, -60), (0,), slice(None), slice(3, None), slice(-200, None)]
)
def test_tokens_that_differ_are_refused(positions):
    with pytest.raises(EvalError, match="tokens in common"):
        task_of(positions=positions)


def test_no_token_in_common_is_refused():
    other = SpliceGroup(name="g", prompts={"a": "one water", "b": "two words"}, question="?")

    with pytest.raises(EvalError, match="0 tokens in common"):
        task_of(groups=[other])


@pytest.mark.parametrize("answers", [{"a": "x"}, {"a": "x b", "A": "y b"}, {}])
def test_answers_differ(answers):
    with pytest.raises(EvalError, match="different answers"):
        SpliceGroup(name="g", prompts=answers, question="?")


def test_halves_differ():
    with pytest.raises(EvalError, match="same prompt"):
        task_of(groups=[SpliceGroup(name="g", prompts={"a": "x", "b": "x"}, question="?")])


def test_a_tokenizer_that_is_not_the_models_is_noticed(model):
    other = tiny.tokenizer()
    other.chat_template = tiny.CHAT_TEMPLATE + "{{ ' It is so' * 9 }}"

    with pytest.raises(EvalError, match="tokenizer of"):
        task_of(tokenizer=other).items(model)


@pytest.mark.parametrize("changes", [{"groups": []}, {"reply": True}])
def test_impossible_settings(changes):
    with pytest.raises(EvalError):
        task_of(**changes)
    with pytest.raises(EvalError, match="once"):
        task_of(groups=[group(), group()])
