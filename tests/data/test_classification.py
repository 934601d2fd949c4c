"""Questions are true, and who sees no activations scores exactly chance."""

import json
from collections import Counter, defaultdict

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data import LayerChoice
from aotoolkit.data.classification import Classification, OpenClassification, _unlike
from aotoolkit.data.context import encode_context
from aotoolkit.data.table import LabelledTexts, labelled_texts, read_labelled_texts
from aotoolkit.data.window import Window
from aotoolkit.errors import ChatTemplateError, DataError

TOKENIZER = tiny.tokenizer()
LAYERS = LayerChoice((1, 2))
SLOTTED = ["Is it {label}?", "Would you call it {}?"]

LABEL_SETS = st.lists(
    st.frozensets(st.sampled_from("abcd"), max_size=3) | st.sampled_from([frozenset("a")]),
    min_size=2,
    max_size=40,
)


def texts_of(label_sets) -> LabelledTexts:
    return LabelledTexts(
        {f"Text {n} {'and more ' * (n % 5)}": labels for n, labels in enumerate(label_sets)}, "test"
    )


def rows(**counts: int) -> LabelledTexts:
    return texts_of([frozenset([label]) for label, count in counts.items() for _ in range(count)])


def source(data: LabelledTexts, **options) -> Classification:
    defaults = {"name": "test", "tokenizer": TOKENIZER, "layers": LAYERS, "questions": SLOTTED}
    return Classification(data=data, **(defaults | options))


def all_examples(made, seed=0):
    return [example for group in made.groups(seed) for example in group]


def labels_by_context(data: LabelledTexts):
    return {
        encode_context(TOKENIZER, [{"role": "user", "content": text}]).token_ids: labels
        for text, labels in data.texts.items()
    }


def seen_by_a_guesser(example):
    """All that an oracle is given beside the vectors."""
    return example.question, len(example.positions), example.layers


@given(LABEL_SETS, st.integers(1, 5), st.integers(0, 3))
def test_a_guesser_without_activations_scores_chance(label_sets, questions, seed):
    data = texts_of(label_sets)
    try:
        made = source(
            data, questions_per_context=questions, window=Window(width=(1, 9), offset=(1, 5))
        )
    except DataError:
        assert len(set(label_sets)) == 1 or not frozenset().union(*label_sets)
        return
    answers = defaultdict(Counter)
    for example in all_examples(made, seed):
        answers[seen_by_a_guesser(example)][example.answer] += 1
    assert answers
    for counts in answers.values():
        assert counts["Yes"] == counts["No"] > 0


@given(LABEL_SETS, st.integers(1, 4), st.integers(0, 3))
def test_answers_are_true(label_sets, questions, seed):
    data = texts_of(label_sets)
    if len(set(label_sets)) == 1:
        return
    labels = labels_by_context(data)
    for group in source(data, questions_per_context=questions).groups(seed):
        assert len({example.context_ids for example in group}) == 1
        assert len(group) == questions
        for example in group:
            asked = example.question.rstrip("?").split()[-1]
            assert (example.answer == "Yes") == (asked in labels[example.context_ids])
            assert example.choices == ("Yes", "No")
            assert example.source == "test"
            assert example.question.startswith("Answer with 'Yes' or 'No' only. ")


@given(LABEL_SETS.map(lambda sets: [s or frozenset("a") for s in sets]))
def test_no_text_is_left_out_where_no_class_has_more_than_half(label_sets):
    most = max(Counter(label_sets).values())
    if 2 * most > len(label_sets):
        return
    contexts = {e.context_ids for e in all_examples(source(texts_of(label_sets)))}
    assert len(contexts) == len(label_sets) - len(label_sets) % 2


@given(st.lists(st.sampled_from("aabc"), min_size=2, max_size=60), st.randoms())
def test_unlike_texts_stand_side_by_side(labels, rng):
    labels = labels[: len(labels) // 2 * 2]
    rng.shuffle(labels)
    half = len(labels) // 2
    if Counter(labels).most_common(1)[0][1] > half:
        return
    classes = [frozenset(label) for label in labels]
    left, right = list(range(half)), list(range(half, 2 * half))
    placed = _unlike(classes, left, right)
    assert sorted(placed) == right
    assert all(classes[a] != classes[b] for a, b in zip(left, placed, strict=True))


def test_each_text_is_asked_as_often_with_yes_as_with_no():
    for group in source(rows(a=20, b=7, c=13), questions_per_context=4).groups(0):
        assert Counter(example.answer for example in group) == {"Yes": 2, "No": 2}


def test_frequent_labels_are_asked_about_more_often_and_rare_ones_too():
    examples = all_examples(source(rows(a=50, b=25, c=25), questions=["Is it {label}?"]))
    asked = Counter(example.question[-2] for example in examples)
    assert set(asked) == {"a", "b", "c"}
    assert max(asked, key=asked.__getitem__) == "a"


def test_what_the_majority_has_too_many_takes_turns():
    data = rows(a=90, b=10)
    made = source(data)
    contexts = [{e.context_ids for e in all_examples(made, seed)} for seed in range(3)]
    assert [len(c) for c in contexts] == [20, 20, 20]
    assert len(set().union(*contexts)) > 30


def test_texts_meet_the_same_texts_whatever_the_seed_and_the_order_of_rows():
    data = rows(a=12, b=30, c=5)
    turned = LabelledTexts(dict(reversed(data.texts.items())), "other")
    groups = defaultdict(set)
    for made in (
        source(data),
        source(turned, name="span", window=Window(width=(1, 5), offset=(1, 2))),
    ):
        for seed in range(4):
            for example in all_examples(made, seed):
                groups[example.context_ids].add(example.group)
    assert all(len(found) == 1 for found in groups.values())
    assert list(source(data).groups(1)) == list(source(turned).groups(1))
    assert list(source(data).groups(1)) != list(source(data).groups(2))


def test_both_texts_of_a_pair_have_one_group_id():
    groups = list(source(rows(a=6, b=6)).groups(0))
    for first, second in zip(groups[::2], groups[1::2], strict=True):
        assert {e.group for e in first} == {e.group for e in second}
        assert [e.question for e in first] == [e.question for e in second]
        assert [e.answer for e in first] != [e.answer for e in second]


def test_questions_that_stand_for_one_label():
    data = rows(**{"1": 10, "0": 10})
    made = source(data, questions={"1": ["Is this true?", "Is this so?"]}, layers=LayerChoice((2,)))
    labels = labels_by_context(data)
    for example in all_examples(made):
        assert example.question.endswith(("Is this true?", "Is this so?"))
        assert (example.answer == "Yes") == (labels[example.context_ids] == {"1"})


def test_labels_without_questions_are_only_ever_no():
    made = source(rows(a=10, b=10, c=10), questions={"a": ["Is it a?"]})
    assert Counter(e.answer for e in all_examples(made)) == {"Yes": 20, "No": 20}


@pytest.mark.parametrize("label", ["{label}", "{}", "{0.__class__}", "%s", "a}{"])
def test_braces_in_labels_and_questions_stay_as_they_are(label):
    made = source(rows(**{label: 2, "b": 2}), questions=["Is {0} {x} of it {label}?"])
    asked = {example.question for example in all_examples(made)}
    assert f"Answer with 'Yes' or 'No' only. Is {{0}} {{x}} of it {label}?" in asked


def test_positions_near_the_end():
    made = source(rows(a=50, b=50), questions_per_context=4)
    assert {len(e.context_ids) - e.positions[0] for e in all_examples(made)} == set(range(1, 6))
    spans = source(rows(a=50, b=50), window=Window(width=(1, 50), offset=(1, 5)))
    for example in all_examples(spans):
        first, last = example.positions[0], example.positions[-1]
        assert example.positions == tuple(range(first, last + 1))
        assert first >= 1


def test_every_layer_is_asked_the_same():
    made = source(rows(a=4, b=4), layers=LayerChoice((1, 2), "each"))
    for group in made.groups(0):
        for one, two in zip(group[::2], group[1::2], strict=True):
            assert (one.layers, two.layers) == ((1,), (2,))
            assert (one.question, one.positions) == (two.question, two.positions)


def test_texts_are_cut_and_the_chat_is_closed_again():
    data = LabelledTexts({"water " * 50: frozenset("a"), "blue " * 50: frozenset("b")}, "long")
    ending = encode_context(TOKENIZER, [{"role": "user", "content": ""}]).token_ids[-2:]
    for example in all_examples(source(data, max_length=8)):
        assert len(example.context_ids) < 20
        assert example.context_ids[-2:] == ending


def test_texts_without_a_chat():
    plain = tiny.tokenizer(chat=False)
    data = rows(a=2, b=2)
    made = source(data, tokenizer=plain, chat=False)
    expected = {encode_context(plain, text).token_ids for text in data.texts}
    assert {e.context_ids for e in all_examples(made)} == expected
    with pytest.raises(ChatTemplateError):
        all_examples(source(data, tokenizer=plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": rows(a=5)}, "one answer would always be right"),
        ({"questions": {"a": ["Is it a?"]}, "data": rows(a=1)}, "always be right"),
        ({"questions": {"x": ["Is it x?"]}}, r"about \['x'\], but no text"),
        ({"questions": {}}, "no text"),
        ({"questions": []}, "at least one question"),
        ({"questions": "Is it {label}?"}, "give a list"),
        ({"questions": ["Is it?"]}, "no slot"),
        ({"questions": {"a": [" "]}}, "each question is a text"),
        ({"questions_per_context": 0}, "questions_per_context of 'test' is 0"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_settings_of_which_nothing_can_be_made(options, message):
    with pytest.raises(DataError, match=message):
        source(**({"data": rows(a=2, b=2)} | options))


def test_open_questions_are_answered_with_the_label():
    data = texts_of([frozenset("a"), frozenset("b"), frozenset("ab"), frozenset()])
    made = OpenClassification(
        name="open",
        data=data,
        tokenizer=TOKENIZER,
        layers=LAYERS,
        questions=["What is it?", "Which one?"],
        questions_per_context=2,
    )
    labels = labels_by_context(data)
    examples = all_examples(made)
    assert len(examples) == 6
    for example in examples:
        assert example.answer == ", ".join(sorted(labels[example.context_ids]))
        assert example.choices == ("a", "a, b", "b")
    assert made.describe()["most_frequent_answer_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("questions", "data", "message"),
    [
        (["Is it {label}?"], rows(a=2, b=2), "give the answer away"),
        (["What?"], rows(a=2), "one answer"),
        (["What?"], texts_of([frozenset()]), "one answer"),
    ],
)
def test_open_questions_of_which_nothing_can_be_made(questions, data, message):
    with pytest.raises(DataError, match=message):
        OpenClassification(
            name="open", data=data, tokenizer=TOKENIZER, layers=LAYERS, questions=questions
        )


def test_the_published_paraphrases(shared):
    folder = shared / "data" / "activation_oracles" / "classification"
    paraphrases = json.loads((folder / "paraphrases.json").read_text())
    sentences = read_labelled_texts(
        folder / "singular_plural.csv", text="sentence", label="n_subjects"
    )
    made = source(sentences, questions=paraphrases["singular_plural"])
    answers = defaultdict(Counter)
    for example in all_examples(made):
        answers[seen_by_a_guesser(example)][example.answer] += 1
    assert all(counts["Yes"] == counts["No"] for counts in answers.values())
    assert sum(counts["Yes"] for counts in answers.values()) == 358
    description = json.loads(json.dumps(made.describe()))
    assert description["label_counts"] == {"single": 184, "multiple": 179}


def test_describe_changes_with_every_setting():
    """A mixture is built anew where what its sources say of themselves has changed."""
    data = rows(a=4, b=4)
    changes = [
        {},
        {"data": rows(a=4, b=5)},
        {"questions": [SLOTTED[0], "Would you name it {}?"]},
        {"questions_per_context": 3},
        {"window": Window(width=(1, 2), offset=(1, 5))},
        {"layers": LayerChoice((1, 2), "each")},
        {"chat": False},
        {"max_length": 9},
    ]
    made = [json.dumps(source(**({"data": data} | change)).describe()) for change in changes]
    assert len(set(made)) == len(changes)


def test_labelled_rows_make_a_source():
    data = labelled_texts([{"text": f"t{n}", "label": n % 2} for n in range(6)])
    assert len(all_examples(source(data, questions={"1": ["Is it odd?"]}))) == 12
