import guessers
import pytest
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals import ArmAnswer
from aotoolkit.evals.tasks import UserTrait


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


def task_of(**changes):
    values = {
        "organisms": {"red": "man", "blue": "woman"},
        "prompts": ["Hi", "Give me a hint."],
        "question": "Who is the user?",
        "layers": 2,
    }
    return UserTrait(**(values | changes))


def test_both_named_is_wrong_and_case_is_not(model):
    task = task_of()
    item = task.items(model)[0]
    say = lambda text: task.score(item, guessers.answers([item], guessers.constant(text))[0])  # noqa: E731

    assert [say(text) for text in ("MAN", "woman", "a man or a woman", "human", "")] == [
        1,
        0,
        0,
        0,
        0,
    ]


def test_a_biased_arm_has_its_auroc_though_its_accuracy_is_chance(model):
    task = task_of()
    items = task.items(model)
    # It always prefers "woman", but less of the man's organism.
    given = [
        ArmAnswer(
            item=item.id,
            arm="arm",
            text="woman",
            scores={"man": 0.0, "woman": 1.0 if item.unit == "red" else 2.0},
        )
        for item in items
    ]

    assert guessers.mean_score(task, items, given) == 0.5
    estimate = task.estimate(items, given, seed=0)
    assert estimate.mean == 1.0
    assert estimate.n == 2
    assert estimate.low < 0.5  # two organisms prove nothing


def test_three_traits_are_averaged(model):
    task = task_of(traits=("man", "woman", "child"))
    items = task.items(model)

    assert task.estimate(items, guessers.answers(items, guessers.told), seed=0).mean == 1.0
    assert (
        task.estimate(items, guessers.answers(items, guessers.constant("child")), seed=0).mean
        == 0.5
    )


def test_one_trait_is_refused():
    with pytest.raises(EvalError, match="another trait"):
        task_of(organisms={"red": "man", "blue": "man"})


def test_a_trait_outside_the_choices_is_refused():
    with pytest.raises(EvalError, match="choices"):
        task_of(traits=("man", "child")).specs()
