import guessers
import pytest
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals import ArmAnswer
from aotoolkit.evals.tasks import Predicate, PredicateClassification, read_published_predicates


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


def predicate(name="p", positives=6, negatives=4):
    return Predicate(
        name=name,
        positives=tuple(f"yes {name} {n}" for n in range(positives)),
        negatives=tuple(f"no {name} {n}" for n in range(negatives)),
        questions=("Is it?", "Would it be?", "Can it be?", "Is it?"),
    )


def test_both_classes_are_asked_the_same_questions_equally_often():
    task = PredicateClassification(predicates=[predicate()], wordings=2, layers=2)

    specs = task.specs()

    assert len(specs) == 4 * 2 * 2
    for question in {spec.question for spec in specs}:
        own = [spec.answers for spec in specs if spec.question == question]
        assert own.count(("Yes",)) == own.count(("No",))


@pytest.mark.parametrize("chat", [True, False])
def test_positions_count_from_the_end_of_the_text(model, chat):
    task = PredicateClassification(predicates=[predicate()], chat=chat, layers=2)
    items = task.items(model)

    for item in items:
        text = item.prompt if isinstance(item.prompt, str) else item.prompt[0]["content"]
        # In a chat "<|im_end|>" and a line break end the turn.
        whole = model.encode(item.prompt, add_generation_prompt=False)
        assert item.activations.positions == (len(whole) - 3,)
        start, end = item.activations.offsets[0]
        assert item.activations.text[start:end] in text


def scored(items, margin):
    return [
        ArmAnswer(item=item.id, arm="arm", text="Yes", scores={"Yes": margin(item), "No": 0.0})
        for item in items
    ]


def test_auroc_is_within_each_predicate(model):
    task = PredicateClassification(predicates=[predicate("a"), predicate("b")], layers=2)
    items = task.items(model)
    # Sure of "Yes" on one predicate and of "No" on the other, and right within both.
    shift = {"a": 10.0, "b": -10.0}

    given = scored(items, lambda i: shift[i.details["predicate"]] + float("Yes" in i.answers))

    estimate = task.estimate(items, given, seed=0)
    assert estimate.mean == 1.0
    assert (estimate.n, estimate.unit) == (2, "predicate")
    assert estimate.low < 0.5
    assert guessers.mean_score(task, items, given) == 0.5


def test_texts_are_counted_for_a_claim_about_one_predicate(model):
    task = PredicateClassification(predicates=[predicate()], unit="text", layers=2)
    items = task.items(model)

    estimate = task.estimate(items, scored(items, lambda i: float("Yes" in i.answers)), seed=0)

    assert (estimate.mean, estimate.n, estimate.unit) == (1.0, 8, "text")
    with pytest.raises(EvalError, match="task of each"):
        PredicateClassification(predicates=[predicate("a"), predicate("b")], unit="text", layers=2)


def test_one_predicate_says_nothing_of_others(model):
    task = PredicateClassification(predicates=[predicate()], layers=2)
    items = task.items(model)

    estimate = task.estimate(items, scored(items, lambda i: float("Yes" in i.answers)), seed=0)

    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (1.0, 0.0, 1.0, 1)


def test_spare_texts_are_not_asked_about():
    task = PredicateClassification(predicates=[predicate()], texts=2, layers=2)

    spare = task.spare_specs(task.predicates[0], limit=3)

    asked = {spec.prompt[0]["content"] for spec in task.specs()}
    told = [spec.prompt[0]["content"] for spec in spare]
    assert not asked & set(told)
    assert len(set(told)) == len(told) == 5  # three of four positives left, two negatives
    assert all(
        ("yes" in text) == (spec.answers == ("Yes",))
        for text, spec in zip(told, spare, strict=True)
    )


@pytest.mark.parametrize(
    "changes",
    [{"predicates": []}, {"texts": 0}, {"wordings": 0}, {"unit": "question"}],
)
def test_impossible_settings(changes):
    with pytest.raises(EvalError):
        PredicateClassification(**({"predicates": [predicate()], "layers": 2} | changes))


def test_a_text_is_not_both():
    with pytest.raises(EvalError, match="leave it out of one"):
        Predicate(name="p", positives=("a",), negatives=("a",), questions=("?",))


def test_published_predicates(shared):
    predicates = read_published_predicates(
        shared / "data" / "activation_oracles" / "classification"
    )

    assert [p.name for p in predicates] == [
        "cities",
        "larger_than",
        "sp_en_trans",
        "singular_plural",
    ]
    plural = predicates[-1]
    assert "Andy and Gabrielle went to a party." in plural.positives
    assert "Andy Garcia is an actor." in plural.negatives
    task = PredicateClassification(predicates=predicates, layers=2)
    assert len(task.specs()) == 4 * 125 * 2 * 3
