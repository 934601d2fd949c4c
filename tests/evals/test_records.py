"""What is kept of an answer, and what its digest depends on."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import tiny
import tiny_items
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny_suite import Planted, Told, plant

from aotoolkit.errors import BrokenRecordWarning
from aotoolkit.evals import (
    ArmAnswer,
    ControlArm,
    OracleArm,
    Record,
    read_records,
)
from aotoolkit.evals.baselines import (
    LinearProbe,
    LogitLens,
    MeanDifferenceLens,
    PatchedPrompt,
    Prompting,
    TextReader,
    UntrainedOracle,
    Voted,
)
from aotoolkit.evals.identity import answer_digest, arm_identity, describe, item_identity
from aotoolkit.evals.records import RecordWriter, write_records
from aotoolkit.oracle import Oracle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def items(model):
    return tiny_items.items(model, 3)


@pytest.fixture
def records(items):
    task, arm = Planted(), Told()
    answers = [
        ArmAnswer(
            item=item.id,
            arm="oracle",
            text="line\nbreak \u2028 \x85 ü \ud83d",
            scores={"water": -1.5, "word": float("-inf")},
            details={"log_prob": -0.5, "layers": [1, 2]},
        )
        for item in items
    ]
    tokens = tuple(f"t{number}" for number in range(40))
    return [
        Record.of(task, arm, item, answer, tokens=tokens, digest=f"d{number}")
        for number, (item, answer) in enumerate(zip(items, answers, strict=True))
    ]


def test_a_record_survives_its_file(records, tmp_path):
    path = tmp_path / "results.jsonl"
    RecordWriter(path).write(records[:2])
    RecordWriter(path).write(records[2:])
    assert read_records(path) == records
    write_records(path, records)
    assert read_records(path) == records
    assert len(path.read_bytes().splitlines()) == 3
    assert records[0].key == ("planted", "oracle", None, "item 0", "d0")
    assert records[0].answer.scores["word"] == float("-inf")
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", [1, 40, 5000])
def test_a_cut_line_costs_itself_alone(records, tmp_path, cut):
    path = tmp_path / "results.jsonl"
    RecordWriter(path).write(records[:2])
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = max(len(lines[0]) + 5, len(whole) - cut)
    path.write_bytes(whole[:kept])
    if cut == 1:  # only the line's end
        assert read_records(path) == records[:2]
    else:
        with pytest.warns(BrokenRecordWarning, match="line 2"):
            assert read_records(path) == records[:1]
    # What is added afterwards stands on a line of its own.
    RecordWriter(path).write(records[2:])
    if cut == 1:
        assert read_records(path) == records
    else:
        with pytest.warns(BrokenRecordWarning):
            assert read_records(path) == [records[0], records[2]]


@pytest.mark.parametrize(
    "line", ["[]", "{}", "7", "\xff", '{"task": "a"}'], ids=["list", "empty", "7", "bytes", "other"]
)
def test_a_line_that_is_no_record_is_left_out(records, tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line.encode("latin-1") + b"\n")
    RecordWriter(path).write(records)
    with pytest.warns(BrokenRecordWarning, match="line 1"):
        assert read_records(path) == records


def test_further_scores_are_kept(items):
    class Further(Planted):
        secondary = ("half",)

        def secondary_score(self, name, item, answer):
            return 0.5

    answer = ArmAnswer(item=items[0].id, arm="oracle", text="")
    record = Record.of(Further(), Told(), items[0], answer, tokens=(), digest="")
    assert record.secondary == {"half": 0.5}
    assert json.loads(record.to_json())["secondary"] == {"half": 0.5}


# What an answer depends on


def test_each_field_of_an_item_counts(model, items):
    item = items[0]
    known = {item_identity(item)}
    assert item_identity(tiny_items.items(model, 3)[0]) in known  # read again
    for changes in (
        {"id": "other"},
        {"question": "Which?"},
        {"answers": ("word",)},
        {"choices": ("water", "word")},
        {"reply": "The {choice}."},
        {"direct_question": "Tell me."},
        {"details": {"a": 1}},
        {"details": {"a": 2}},
        {"base_activations": None},
        {"unit": "green"},
        {"prompt": "another"},
    ):
        changed = item_identity(dataclasses.replace(item, **changes))
        assert changed not in known, changes
        known.add(changed)
    for other in (plant(item, 0), plant(item, 1)):
        assert item_identity(other) not in known
        known.add(item_identity(other))
    fewer = dataclasses.replace(item, activations=item.activations[1:])
    assert item_identity(fewer) not in known


def test_each_setting_of_an_arm_counts(model, items):
    oracle = tiny_items.oracle(model)
    other = Oracle(model, "red", oracle.contract)
    labels = ["water", "word"]
    acts = [item.base_activations for item in items[:2]]
    acts[0] = dataclasses.replace(acts[0], vectors=acts[0].vectors + 1)
    probes = [
        LinearProbe.fit(acts, labels, regularisation=strength, pool="last")
        for strength in (1.0, 1.0, 10.0)
    ]
    assert arm_identity(probes[0]) == arm_identity(probes[1]) != arm_identity(probes[2])
    coefficient = dataclasses.replace(oracle.contract, coefficient=2.0)
    arms = [
        OracleArm(oracle),
        OracleArm(other),
        OracleArm(Oracle(model, "reader", coefficient)),
        OracleArm(oracle, name="another"),
        OracleArm(oracle, max_new_tokens=5),
        OracleArm(oracle, coefficient=2.0),
        ControlArm(oracle, "zero"),
        ControlArm(oracle, "random"),
        ControlArm(oracle, "random", seed=1),
        UntrainedOracle(oracle),
        LogitLens(model),
        LogitLens(model, top_k=3),
        MeanDifferenceLens(model, ["a"]),
        MeanDifferenceLens(model, ["b"]),
        Prompting(model),
        Prompting(model, start="It is"),
        Voted(Prompting(model)),
        Voted(Prompting(model, start="It is")),
        Voted(Prompting(model), samples=5),
        TextReader(model),
        TextReader(model, adapter="red"),
        TextReader(model, adapter="blue"),
        PatchedPrompt(model),
        PatchedPrompt(model, inject_layers=(2,)),
        Told(),
        Told(version=2),
        *probes[1:],
    ]
    identities = [arm_identity(arm) for arm in arms]
    assert len(set(identities)) == len(arms)
    assert [arm_identity(arm) for arm in arms] == identities


def test_asking_leaves_an_arm_what_it_was(model, items):
    oracle = tiny_items.oracle(model)
    lens = MeanDifferenceLens(model, ["Give me a hint."])
    for arm in (OracleArm(oracle, max_new_tokens=2), lens):
        before = arm_identity(arm)
        arm.answer(items)
        assert arm_identity(arm) == before


def test_an_adapter_counts_by_its_weights(tmp_path):
    def identity(folder, seed, name):
        model = tiny_items.target(folder)
        tiny.save_adapter(folder / "more", seed=seed)
        model.load_adapter(name, folder / "more")
        return arm_identity(OracleArm(Oracle(model, name, tiny_items.oracle(model).contract)))

    first = identity(tmp_path / "a", 7, "one")
    assert identity(tmp_path / "b", 7, "two") == first
    assert identity(tmp_path / "c", 8, "one") != first


def test_an_arm_may_say_what_it_is_made_of():
    class Sure(Told):
        identity = ("weights", 1)

    one, two = Sure(), Sure(version=2)
    assert arm_identity(one) == arm_identity(two)
    two.identity = ("weights", 2)
    assert arm_identity(one) != arm_identity(two)


def test_company_counts_where_it_is_given():
    assert answer_digest("a", "b") != answer_digest("a", "b", company=["b"])
    assert answer_digest("a", "b", company=["b", "c"]) != answer_digest("a", "b", company=["b"])


def test_values_are_described_by_their_content():
    class Thing:
        def __init__(self, value):
            self.value = value
            self._cache = object()
            self.me = self

    alike = [
        (1, 1),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2}, {2, 1}),
        (slice(1, 2), slice(1, 2)),
        (np.arange(3), np.arange(3)),
        (np.float64(1.5), 1.5),
        (torch.ones(2), torch.ones(2)),
        (Thing(1), Thing(1)),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (len, len),
        (Thing, Thing),
        (b"a", b"a"),
        (torch.float32, torch.float32),
    ]
    for one, two in alike:
        assert json.dumps(describe(one)) == json.dumps(describe(two)), one
    differ = [(1, 2), (Thing(1), Thing(2)), (torch.ones(2), torch.zeros(2)), (slice(1), slice(2))]
    for one, two in differ:
        assert json.dumps(describe(one)) != json.dumps(describe(two)), one


def test_what_an_object_keeps_in_private_counts_where_its_answers_depend_on_it():
    def described(make):
        torch.manual_seed(0)
        return json.dumps(describe(make()))

    def net(shift=0.0):
        made = torch.nn.Linear(3, 2)
        with torch.no_grad():
            made.bias.add_(shift)
        return made

    def neighbours(label=1):
        return KNeighborsClassifier(1).fit([[0.0], [1.0]], [0, label])

    for make, other in (
        (net, lambda: net(1.0)),
        (lambda: partial(max, 1), lambda: partial(max, 2)),
        (lambda: partial(max, key=1), lambda: partial(max, key=2)),
        (neighbours, lambda: neighbours(2)),
    ):
        assert described(make) == described(make)
        assert described(make) != described(other)


def test_a_models_chat_template_counts_for_arms_that_write_prompts(model, monkeypatch):
    before = arm_identity(PatchedPrompt(model)), arm_identity(TextReader(model))
    template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    after = arm_identity(PatchedPrompt(model)), arm_identity(TextReader(model))
    assert not set(before) & set(after)


def test_a_rung_of_an_item_is_kept_with_its_answer(model):
    (item,) = tiny_items.items(model, 1, details={"rung": "L2", "note": "x"})
    answer = ArmAnswer(item=item.id, arm="a", text="water", scores={}, details={"own": 1})
    record = Record.of(Planted(), Told(), item, answer, tokens=(), digest="")
    assert record.details == {"rung": "L2", "own": 1}
