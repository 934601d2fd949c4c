"""A contract goes to disk and back whole, and refuses what it cannot mean."""

import dataclasses
import json

import pytest

from aotoolkit.errors import ContractError
from aotoolkit.oracle.contract import CONTRACT_FILE, OracleContract


def contract(**changes) -> OracleContract:
    fields = {
        "base_model": "base",
        "dialect": "activation_oracle",
        "prefix_template": "Layer: {layer}\n{placeholders} \n",
        "placeholder": " ?",
        "read_layers": (2, 4, 6),
        "layers_per_prompt": "one",
        "inject_layer": 1,
        "formula": "add_norm_matched",
        "coefficient": 1.0,
        "transform": "none",
        "position_ids": "from_mask",
    }
    return OracleContract(**(fields | changes))


def test_write_then_read_gives_the_same_contract(tmp_path):
    written = contract(
        base_digest="ab",
        placeholder_id=7,
        neighbour_ids=(1, 2),
        read_fractions=(0.25, 0.5),
        training_data=({"name": "words", "size": 3, "digest": "cd"},),
        extra={"recommended_layer": 4, "accuracy": {"mean": 0.8}},
        chat_template_kwargs={"enable_thinking": False},
        lora_rank=8,
        lora_alpha=16,
        rslora=True,
        licence="MIT",
    )
    path = written.write(tmp_path)
    assert path.name == CONTRACT_FILE
    assert OracleContract.read(tmp_path) == written
    assert [p.name for p in tmp_path.iterdir()] == [CONTRACT_FILE], "a temporary file was left"


def test_a_failed_write_leaves_the_old_contract(tmp_path):
    contract().write(tmp_path)
    with pytest.raises(TypeError):
        contract(extra={"value": object()}).write(tmp_path)
    assert OracleContract.read(tmp_path) == contract()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"formula": "add"}, "formula"),
        ({"dialect": "other"}, "dialect"),
        ({"transform": "pca"}, "transform"),
        ({"position_ids": "absolute"}, "position_ids"),
        ({"layers_per_prompt": "two"}, "layers_per_prompt"),
        ({"prefix_template": "Layer: {layer}"}, "prefix_template"),
        ({"prefix_template": "{placeholders}{placeholders}"}, "prefix_template"),
        ({"placeholder": ""}, "placeholder"),
        ({"read_layers": ()}, "read_layers"),
        ({"read_layers": (-1,)}, "read_layers"),
        ({"read_layers": ("2",)}, "read_layers"),
        ({"inject_layer": -1}, "inject_layer"),
        ({"inject_layer": "1"}, "inject_layer"),
        ({"coefficient": "1"}, "coefficient"),
        ({"final_scale": 2.0}, "final_scale"),
        ({"formula": "replace", "coefficient": 2.0}, "coefficient"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(changes, field):
    with pytest.raises(ContractError, match=field):
        contract(**changes)


@pytest.mark.parametrize(
    "name", ["formula", "read_layers", "transform", "coefficient", "base_model"]
)
def test_a_missing_field_has_no_silent_default(tmp_path, name):
    values = dataclasses.asdict(contract())
    del values[name]
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(values))
    with pytest.raises(ContractError, match=name):
        OracleContract.read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": []},
        {"extra": None},
        {"extra": {"not_recorded": 3}},
        {"extra": {"not_recorded": ["formula", 3]}},
        {"chat_template_kwargs": 5},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"add_generation_prompt": False}},
    ],
)
def test_fields_of_the_wrong_kind_are_refused(tmp_path, changes):
    values = dataclasses.asdict(contract()) | changes
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(values))
    with pytest.raises(ContractError, match=next(iter(changes))):
        OracleContract.read(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / CONTRACT_FILE).write_bytes(b'{"base_model": "\xff"}')
    with pytest.raises(ContractError, match="not JSON"):
        OracleContract.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"unknown_field": 1}'])
def test_a_file_that_is_no_contract_is_refused(tmp_path, text):
    (tmp_path / CONTRACT_FILE).write_text(text)
    with pytest.raises(ContractError):
        OracleContract.read(tmp_path)


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(ContractError, match="does not exist"):
        OracleContract.read(tmp_path)
