"""Published formats become contracts; what they leave out is said."""

import json

import pytest

from aotoolkit.errors import ContractError
from aotoolkit.oracle import find_contract, import_activation_oracle, import_latentqa

AO_CONFIG = {
    "schema_version": 1,
    "model_name": "some/base",
    "special_token": " ?",
    "prefix_template": "Layer: {layer}\\n{special_token} * {num_positions} \\n",
    "hook_onto_layer": 1,
    "steering_coefficient": 2.0,
    "layer_combinations": [[25], [50], [75]],
    "act_layer_combinations": [[2], [4], [6]],
    "lora_r": 4,
    "lora_alpha": 8,
}


def folder_with(tmp_path, **changes):
    config = {k: v for k, v in (AO_CONFIG | changes).items() if v is not None}
    (tmp_path / "ao_config.json").write_text(json.dumps(config))
    return tmp_path


def test_golden_ao_config(golden):
    imported = find_contract(golden.folder / "adapters" / "oracle")
    for name in (
        "dialect",
        "prefix_template",
        "placeholder",
        "read_layers",
        "layers_per_prompt",
        "inject_layer",
        "formula",
        "coefficient",
        "final_scale",
        "transform",
        "position_ids",
    ):
        assert getattr(imported, name) == getattr(golden.contract, name), name
    assert imported.read_fractions == (0.25, 0.5, 0.75)
    assert (imported.lora_rank, imported.lora_alpha, imported.rslora) == (4, 8, False)
    assert "final_scale" in imported.extra["not_recorded"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Layer: {layer}\\n{special_token} * {num_positions} \\n", "Layer: 4\n ? ? ? \n"),
        ("Layer: {layer}\n{special_token} * {num_positions} \n", "Layer: 4\n ? ? ? \n"),
        ("L{layer}:{special_token} * {num_positions}.\\n", "L4: ? ? ?.\n"),
    ],
)
def test_template_texts_in_use(tmp_path, template, text):
    contract = import_activation_oracle(folder_with(tmp_path, prefix_template=template))
    prefix, starts = contract.prefix((4,), 3)
    assert prefix == text
    assert all(prefix[start:].startswith(" ?") for start in starts)


def test_values_are_carried_over(tmp_path):
    contract = import_activation_oracle(
        folder_with(tmp_path, hook_onto_layer=0, act_layer_combinations=[[21, 22], [24]])
    )
    assert (contract.inject_layer, contract.coefficient) == (0, 2.0)
    assert contract.layers_per_prompt == "several"
    assert contract.read_layers == (21, 22, 24)


@pytest.mark.parametrize(
    "name",
    [
        "model_name",
        "special_token",
        "prefix_template",
        "hook_onto_layer",
        "steering_coefficient",
        "act_layer_combinations",
    ],
)
def test_a_missing_field_is_named(tmp_path, name):
    with pytest.raises(ContractError, match=name):
        import_activation_oracle(folder_with(tmp_path, **{name: None}))


@pytest.mark.parametrize("template", ["Layer: {layer}", "{special_token}{special_token}"])
def test_another_template_is_refused(tmp_path, template):
    with pytest.raises(ContractError, match="prefix_template"):
        import_activation_oracle(folder_with(tmp_path, prefix_template=template))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act_layer_combinations", [["4"], [2]]),
        ("act_layer_combinations", [4]),
        ("layer_combinations", [25, 50]),
        ("layer_combinations", [["a"]]),
        ("prefix_template", 5),
        ("prefix_template", ["{special_token} * {num_positions}"]),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path, name, value):
    with pytest.raises(ContractError, match=name):
        import_activation_oracle(folder_with(tmp_path, **{name: value}))


def test_depths_may_be_left_out(tmp_path):
    folder = folder_with(tmp_path)
    text = (folder / "ao_config.json").read_text().replace("[[25], [50], [75]]", "null")
    (folder / "ao_config.json").write_text(text)
    assert import_activation_oracle(folder).read_fractions == ()


def test_a_bare_adapter_needs_a_contract_from_the_caller(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ContractError, match="contract="):
        find_contract(tmp_path)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ContractError, match="not an oracle checkpoint"):
        find_contract(tmp_path)


def test_latentqa(golden):
    folder = golden.folder / "adapters" / "oracle"
    contract = import_latentqa(folder, read_layer=4, base_model="base")
    expected = golden.latentqa_contract(position_ids="shifted")
    for name in ("dialect", "prefix_template", "read_layers", "inject_layer", "formula"):
        assert getattr(contract, name) == getattr(expected, name), name
    assert contract.position_ids == "shifted"
    unshifted = import_latentqa(folder, read_layer=4, base_model="base", shift_position_ids=False)
    assert unshifted.position_ids == "from_mask"


def test_latentqa_needs_a_base_and_an_adapter(golden, tmp_path):
    with pytest.raises(ContractError, match="base_model="):
        import_latentqa(golden.folder / "adapters" / "oracle", read_layer=4)
    with pytest.raises(ContractError, match="adapter_config"):
        import_latentqa(tmp_path, read_layer=4)
