import guessers
import pytest
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import Taboo, read_lines

ORGANISMS = {"red": ["water", "aqua"], "blue": "word"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The word is: water!", 0.0),  # names the other organism's word too
        ("Water.", 1.0),
        ("aqua", 1.0),
        ("waters", 0.0),
        ("stone", 0.0),
        ("", 0.0),
    ],
)
def test_a_word_counts_alone(model, text, score):
    task = Taboo(organisms=ORGANISMS, prompts=["Give me a hint."], words=("stone",), layers=2)
    item = task.items(model)[0]

    assert task.score(item, guessers.answers([item], guessers.constant(text))[0]) == score
    assert item.choices == ("water", "word", "stone")
    assert item.details["secret"] == ["water", "aqua"]


def test_windows_and_replies(model):
    common = {"organisms": ORGANISMS, "prompts": ["Give me a hint."], "layers": (1, 2)}

    last = Taboo(**common, positions=(-1,)).items(model)
    ten = Taboo(**common, positions=slice(-10, None)).items(model)
    replied = Taboo(**common, reply=True, max_reply_tokens=4).items(model)

    assert [len(item.activations) for item in last] == [1, 1]
    assert [len(item.activations) for item in ten] == [10, 10]
    assert all(item.layers == (1, 2) for item in ten)
    for item in replied:
        assert item.activations.text.startswith(last[0].activations.text)
        assert item.chat[-1]["role"] == "assistant"
        assert item.base_activations.context_ids == item.activations.context_ids


@pytest.mark.parametrize(
    ("organisms", "message"),
    [
        ({}, "organisms"),
        ({"red": ""}, "organisms"),
        ({"red": []}, "organisms"),
        ({"red": "a"}, "words="),
    ],
)
def test_impossible_organisms(organisms, message):
    with pytest.raises(EvalError, match=message):
        Taboo(organisms=organisms, prompts=["Hi"], layers=2)


def test_without_prompts_there_is_no_item(model):
    with pytest.raises(EvalError, match="no item"):
        Taboo(organisms=ORGANISMS, prompts=[], layers=2).items(model)


def test_published_prompts(shared, model):
    folder = shared / "data" / "activation_oracles" / "taboo"
    prompts = read_lines(folder / "taboo_direct_test.txt")

    task = Taboo(organisms=ORGANISMS, prompts=prompts, layers=2)

    assert len(prompts) == 100
    assert len(task.specs()) == 200
    assert task.specs()[0].prompt == ({"role": "user", "content": prompts[0]},)
