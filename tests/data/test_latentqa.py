"""The published files are joined on their labels, and what gives a behaviour away is not read."""

import dataclasses
import json
from collections import Counter

import pytest
import tiny
from chat_templates import TEMPLATES
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aotoolkit.data import LayerChoice
from aotoolkit.data.context import encode_context
from aotoolkit.data.latentqa import LatentQA, load_latentqa
from aotoolkit.errors import ChatTemplateError, DataError

LAYERS = LayerChoice((1, 2))
CONTROL, REPLY, STIMULUS, COMPLETION = (
    "Speak of water.",
    "I will.",
    "Give me a hint.",
    "It is blue.",
)
QA = {
    "goal-a": [["How will it speak?", "Of water."], ["Why?", "It was told to."]],
    "goal-b": [["How will it speak?", "In blue."]],
}
FILES = {
    "qa": QA,
    "control": [{"label": label, "control_user": CONTROL} for label in QA],
    "stimulus": [
        {
            "label": label,
            "control_user": CONTROL,
            "control_thought": "Hm.",
            "control_model": REPLY,
            "stimulus_user": STIMULUS,
        }
        for label in QA
    ],
    "stimulus_completion": [
        {
            "label": "goal-a",
            "control_user": CONTROL,
            "control_model": REPLY,
            "stimulus_user": STIMULUS,
            "stimulus_thought": "Hm.",
            "stimulus_model": COMPLETION,
        }
    ],
    "system": [{"label": label, "system": CONTROL, "stimulus_user": STIMULUS} for label in QA],
}


def write(folder, **files):
    for name, content in (FILES | files).items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{name}.json").write_text(text)
    return folder


def source(data, *, tokenizer=None, **options) -> LatentQA:
    defaults = {"name": "latentqa", "tokenizer": tokenizer or tiny.tokenizer(), "layers": LAYERS}
    return LatentQA(data=data, **(defaults | options))


@pytest.fixture
def data(tmp_path):
    return load_latentqa(write(tmp_path))


def test_each_entry_meets_the_questions_of_its_label(data):
    assert data.counts == {"control": 2, "stimulus": 2, "stimulus_completion": 1, "system": 2}
    assert data.num_examples == 3 + 3 + 2 + 3
    for item in data.items:
        assert [list(pair) for pair in item.qa] == QA[item.label]
    roles = {item.kind: [message["role"] for message in item.messages] for item in data.items}
    assert roles == {
        "control": ["user"],
        "stimulus": ["user", "assistant", "user"],
        "stimulus_completion": ["user", "assistant", "user", "assistant"],
        "system": ["system", "user"],
    }


def test_kinds_can_be_chosen(tmp_path):
    write(tmp_path)
    assert load_latentqa(tmp_path, kinds=["system"]).counts == {"system": 2}
    (tmp_path / "system.json").unlink()
    assert "system" not in load_latentqa(tmp_path).counts
    with pytest.raises(DataError, match=r"has no system\.json. It has: control\.json, qa\.json"):
        load_latentqa(tmp_path, kinds=["system", "control"])
    with pytest.raises(DataError, match="Kind 'systems' is unknown"):
        load_latentqa(tmp_path, kinds=["systems"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_masked_turns_are_never_read(data, name):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    made = source(data, tokenizer=tokenizer)
    for item in data.items:
        ids, readable = made.readable(item)
        read = tokenizer.decode(ids[readable.start : readable.stop])
        hidden = tokenizer.decode(ids[: readable.start])
        masked, shown = item.messages[: item.masked_turns], item.messages[item.masked_turns :]
        assert readable.stop == len(ids)
        assert all(message["content"] not in read for message in masked)
        assert all(message["content"] in hidden for message in masked)
        assert all(message["content"] in read for message in shown)


def test_the_header_of_the_first_turn_read_is_read_too(data):
    tokenizer = tiny.tokenizer()
    item = next(item for item in data.items if item.kind == "stimulus")
    ids, readable = source(data).readable(item)
    assert tokenizer.decode(ids[readable.start :]) == (
        f"<|im_start|>user\n{STIMULUS}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_reply_is_awaited_only_after_a_users_turn(data):
    tokenizer = tiny.tokenizer()
    for item in data.items:
        text = tokenizer.decode(source(data).readable(item)[0])
        assert text.endswith("<|im_start|>assistant\n") == (item.kind != "stimulus_completion")


def test_all_positions_or_a_few_near_the_end(data):
    made = source(data)
    starts = {made.readable(item)[0]: made.readable(item)[1].start for item in data.items}
    full = few = 0
    for example in (e for seed in range(40) for group in made.groups(seed) for e in group):
        start, length = starts[example.context_ids], len(example.context_ids)
        if example.positions == tuple(range(start, length)):
            full += 1
        else:
            few += 1
            assert len(example.positions) <= 3
            assert 1 <= length - example.positions[-1] <= 10
            assert example.positions[0] >= start
    assert 0.45 < full / (full + few) < 0.55
    assert {len(e.positions) for g in source(data, full_share=0.0).groups(0) for e in g} <= {
        1,
        2,
        3,
    }


def test_examples_of_a_label_stay_on_one_side(data):
    for group in source(data).groups(0):
        assert len({example.context_ids for example in group}) == 1
        assert {example.group for example in group} <= set(QA)
        assert all(example.layers in ((1,), (2,)) for example in group)


def test_the_seed_decides(data):
    assert list(source(data).groups(3)) == list(source(data).groups(3))
    assert list(source(data).groups(3)) != list(source(data).groups(4))


def test_entries_without_questions(tmp_path):
    lonely = [*FILES["control"], {"label": "goal-x", "control_user": "?"}]
    write(tmp_path, control=lonely)
    with pytest.raises(
        DataError, match=r"1 of 3 labels of control\.json are not in qa\.json \(goal-x\)"
    ):
        load_latentqa(tmp_path)
    found = load_latentqa(tmp_path, incomplete="leave_out")
    assert found.left_out == {"control": ("goal-x",)}
    assert found.counts["control"] == 2
    assert source(found).describe()["labels_left_out"] == {"control": 1}


def test_unequal_counts(tmp_path):
    write(tmp_path, system=[*FILES["system"], *FILES["system"][:1]])
    with pytest.raises(DataError, match=r"system\.json are not there equally often.*goal-"):
        load_latentqa(tmp_path)
    assert load_latentqa(tmp_path, incomplete="leave_out").counts["system"] == 3


def test_labels_that_are_equally_often_there_are_all_used(tmp_path):
    write(tmp_path, system=FILES["system"] * 2)
    assert load_latentqa(tmp_path).counts["system"] == 4


def test_questions_without_an_entry_are_counted(tmp_path):
    write(tmp_path, qa=QA | {"goal-x": [["q", "a"]]})
    assert load_latentqa(tmp_path).unused == ("goal-x",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qa": None}, "no file .*qa.json"),
        ({"qa": []}, "label -> list"),
        ({"qa": {"goal-a": []}}, "label 'goal-a': expected a list"),
        ({"qa": {"goal-a": [["q"]]}}, "two texts"),
        ({"qa": {"goal-a": [["q", ""]]}}, "two texts"),
        ({"qa": {"goal-a": ["qa"]}}, "two texts"),
        ({"qa": '{"a": [["q", "a"]], "a": [["q", "b"]]}'}, "more than once: a"),
        ({"qa": "{"}, "not JSON"),
        ({"qa": "[" * 100_000}, "not JSON"),
        ({"control": {}}, "expected a list"),
        ({"control": []}, "no entry"),
        ({"control": ["a"]}, "entry 0 is no object"),
        ({"control": [{"label": "goal-a"}]}, "field 'control_user' is None"),
        ({"control": [{"label": 3, "control_user": "a"}]}, "field 'label' is 3"),
        ({"control": [{"label": "goal-a", "control_user": "\ud800"}]}, "expected text"),
    ],
)
def test_files_in_another_form(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        load_latentqa(write(tmp_path, **files))


def test_settings_that_are_none(tmp_path, data):
    with pytest.raises(DataError, match="incomplete is 'skip'"):
        load_latentqa(tmp_path, incomplete="skip")
    with pytest.raises(DataError, match="no folder"):
        load_latentqa(tmp_path / "absent")
    with pytest.raises(DataError, match="full_share of 'latentqa' is 2"):
        source(data, full_share=2)
    with pytest.raises(ChatTemplateError):
        source(data, tokenizer=tiny.tokenizer(chat=False))


@given(
    st.recursive(
        st.none() | st.text(max_size=3) | st.integers(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["label", "system", "stimulus_user", "goal-a"]), x)
        ),
    )
)
def test_any_json_is_data_or_an_error(tmp_path_factory, content):
    folder = write(tmp_path_factory.mktemp("any"), system=content)
    try:
        found = load_latentqa(folder, incomplete="leave_out")
    except DataError:
        return
    assert all(item.qa for item in found.items)


def test_the_published_split(shared):
    found = load_latentqa(shared / "data" / "latentqa")
    assert found.counts == {"control": 500, "stimulus": 567, "system": 567}
    chats = [item for item in found.items if item.kind != "system"]
    assert sum(len(item.qa) for item in chats) == 2134
    assert found.num_examples == 2134 + 1134
    assert not found.left_out
    # The reference implementation finds the turns by token ids: the second user header of a
    # stimulus, the first of a system prompt.
    tokenizer = tiny.tokenizer()
    header = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    made = source(found)
    for item in found.items[::40]:
        ids, readable = made.readable(item)
        headers = [i for i in range(len(ids)) if list(ids[i : i + len(header)]) == header]
        expected = {"control": 1, "stimulus": headers[-1], "system": headers[0]}[item.kind]
        assert readable.start == expected
    few = source(dataclasses.replace(found, items=found.items[::20]))
    assert Counter(map(len, few.groups(0))) == {2: 82}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_positions_of_the_reference_implementation(shared, family):
    folder = shared / "golden" / family
    if not folder.is_dir():
        pytest.skip(f"no reference outputs at {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for case in json.loads((folder / "latentqa.json").read_text())["cases"]:
        for ids, positions in zip(case["target_input_ids"], case["read_positions"], strict=True):
            turns = tokenizer.decode(ids).split("<|im_start|>")[1:-1]
            messages = [
                {
                    "role": turn.split("\n")[0],
                    "content": turn[turn.index("\n") + 1 : -len("<|im_end|>\n")],
                }
                for turn in turns
            ]
            context = encode_context(tokenizer, messages, add_generation_prompt=True)
            assert list(context.token_ids) == ids
            assert list(range(context.first_from(0), len(context))) == positions
