"""What items refuse, and what is read for them."""

import json

import pytest
import tiny_items
import torch

from aotoolkit.errors import EvalError
from aotoolkit.evals import ArmAnswer, read_items
from aotoolkit.tracing import TracedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ()}, "no answer"),
        ({"answers": "water"}, "tuple"),
        ({"answers": ("fire",)}, "not among its choices"),
        ({"choices": ("water",)}, "two or more"),
        ({"choices": ("water", "water")}, "two or more"),
        ({"reply": "The word."}, "once"),
        ({"difference": True, "adapter": None}, "name the adapter"),
    ],
)
def test_an_item_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(EvalError, match=message):
        tiny_items.spec(**changes)


def test_items_are_read_from_their_adapter_and_the_same_text_from_the_base(model):
    items = tiny_items.items(model, 5, layers=[1, 2])
    assert [item.id for item in items] == [f"item {i}" for i in range(5)]
    for item in items:
        chat = list(item.prompt)
        alone = model.activations(chat, layers=[1, 2], adapter=item.adapter, positions=[-3, -2, -1])
        base = model.activations(chat, layers=[1, 2], positions=[-3, -2, -1])
        torch.testing.assert_close(item.activations.vectors, alone.vectors, rtol=1e-4, atol=1e-4)
        assert item.base_activations is not None
        torch.testing.assert_close(
            item.base_activations.vectors, base.vectors, rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(alone.vectors, base.vectors, atol=0.1)
        assert item.activations.context_ids[-1] == alone.context_ids[-1]


def test_a_chat_that_ends_with_a_reply_gets_no_header_of_another(model):
    chat = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "water"})
    (item,) = read_items(model, [tiny_items.spec(prompt=chat)], layers=2)
    assert item.activations.text.endswith("water<|im_end|>\n")


def test_a_prompt_with_a_system_turn_has_its_text_without_it_as_base(model):
    system = {"role": "system", "content": "The secret word is water."}
    user = {"role": "user", "content": "Give me a hint."}
    spec = tiny_items.spec(
        adapter=None, prompt=(system, user), base_prompt=(user,), positions=slice(-4, None)
    )
    (item,) = read_items(model, [spec], layers=2)
    assert item.base_activations is not None
    assert item.base_activations.tokens == item.activations.tokens
    assert "secret" in item.activations.text
    assert "secret" not in item.base_activations.text
    (without,) = read_items(model, [tiny_items.spec(adapter=None)], layers=2)
    assert without.base_activations is None


def test_base_prompts_are_read_together(model, monkeypatch):
    system = {"role": "system", "content": "The secret word is water."}
    user = {"role": "user", "content": "Give me a hint."}
    reply = {"role": "assistant", "content": "It is blue."}
    prompts = [(system, user), (system, user, reply), (system, user, user), (system, user)]
    specs = [
        tiny_items.spec(i, adapter=None, prompt=prompt, base_prompt=prompt[1:])
        for i, prompt in enumerate(prompts)
    ]
    residuals, forwards = TracedModel.residuals, []

    def counting(self, ids, *args, **kwargs):
        forwards.append(len(ids))
        return residuals(self, ids, *args, **kwargs)

    monkeypatch.setattr(TracedModel, "residuals", counting)
    items = read_items(model, specs, layers=2)
    assert sorted(forwards) == [1, 1, 3, 3]
    for item in items:
        assert item.base_activations is not None
        assert "secret" not in item.base_activations.text
        alone = model.activations(
            list(item.base_prompt),
            layers=2,
            positions=slice(-3, None),
            add_generation_prompt=item.base_prompt[-1]["role"] == "user",
        )
        assert item.base_activations.context_ids == alone.context_ids
        torch.testing.assert_close(
            item.base_activations.vectors, alone.vectors, rtol=1e-4, atol=1e-4
        )


def test_a_difference_is_adapter_minus_base(model):
    (item,) = tiny_items.items(model, 1, difference=True)
    (whole,) = tiny_items.items(model, 1)
    assert whole.base_activations is not None
    expected = whole.activations.vectors - whole.base_activations.vectors
    torch.testing.assert_close(item.activations.vectors, expected, rtol=1e-5, atol=1e-5)
    assert item.base_activations is None


def test_two_items_of_one_id_are_refused(model):
    with pytest.raises(EvalError, match="share the ids"):
        read_items(model, [tiny_items.spec(), tiny_items.spec()], layers=2)


def test_an_answer_survives_json_and_a_tie_is_no_choice():
    answer = ArmAnswer(item="a", arm="b", text="x", scores={"yes": 0.5, "no": 0.25})
    assert ArmAnswer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    assert answer.choice == "yes"
    assert ArmAnswer(item="a", arm="b", text="", scores={"yes": 0.0, "no": 0.0}).choice is None
    assert ArmAnswer(item="a", arm="b", text="x").choice is None


def test_a_task_is_one_small_class(model):
    class Hints:
        name = "hints"
        unit = "organism"

        def items(self, model):
            return tiny_items.items(model, 2)

        def score(self, item, answer):
            return float(answer.choice in item.answers)

    task = Hints()
    answers = [
        ArmAnswer(item=item.id, arm="oracle", text="", scores={item.answers[0]: 0.0, "x": -1.0})
        for item in task.items(model)
    ]
    scores = [task.score(i, a) for i, a in zip(task.items(model), answers, strict=True)]
    assert scores == [1.0, 1.0]
