"""Published checkpoints -> contracts.

What a published format leaves out is stated in the contract's `extra["not_recorded"]`, never
filled in silently: it is the reader's to judge whether that matters.
"""

import json
import os
from pathlib import Path
from typing import Any

from aotoolkit.errors import ContractError
from aotoolkit.oracle.contract import CONTRACT_FILE, PLACEHOLDERS, OracleContract

AO_CONFIG_FILE = "ao_config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"


def find_contract(folder: str | os.PathLike[str]) -> OracleContract:
    """The contract of a checkpoint folder: our own file, else one imported from `ao_config.json`.

    Raises:
        ContractError: The folder describes itself in neither way, or wrongly.
    """
    folder = Path(folder)
    if (folder / CONTRACT_FILE).is_file():
        return OracleContract.read(folder)
    if (folder / AO_CONFIG_FILE).is_file():
        return import_activation_oracle(folder)
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise ContractError(
            f"{folder} is a bare PEFT adapter: nothing in it says with which prompt, layer and "
            "formula it was trained. Pass contract=OracleContract(...) with what its authors say; "
            "for a LatentQA decoder, contract=import_latentqa(folder, ...)."
        )
    raise ContractError(
        f"{folder} has none of {CONTRACT_FILE}, {AO_CONFIG_FILE} and {ADAPTER_CONFIG_FILE}, so it "
        "is not an oracle checkpoint. Give the folder that holds the adapter."
    )


def import_activation_oracle(folder: str | os.PathLike[str]) -> OracleContract:
    r"""The contract of a published Activation Oracle (arXiv:2512.15674), from `ao_config.json`.

    The file writes its template as the text of an expression, such as
    `Layer: {layer}\n{special_token} * {num_positions} \n`, with a backslash and an n.

    Raises:
        ContractError: The file is not JSON, or lacks a field that the prompt or the injection
            depends on.
    """
    path = Path(folder) / AO_CONFIG_FILE
    config = _read_json(path)
    combinations = _field(config, "act_layer_combinations", path)
    if not _is_lists_of(combinations, int):
        raise ContractError(
            f"{path}: act_layer_combinations is {combinations!r}; expected a list of lists of "
            "block indices."
        )
    percentages = config.get("layer_combinations") or []
    if not _is_lists_of(percentages, int | float):
        raise ContractError(
            f"{path}: layer_combinations is {percentages!r}; expected a list of lists of "
            "percentages of the depth."
        )
    template = _field(config, "prefix_template", path)
    if not isinstance(template, str):
        raise ContractError(f"{path}: prefix_template is {template!r}; expected a text.")
    adapter = _adapter_config(folder)
    return OracleContract(
        base_model=_field(config, "model_name", path),
        dialect="activation_oracle",
        prefix_template=_plain_template(template, path),
        placeholder=_field(config, "special_token", path),
        chat_template_kwargs={"enable_thinking": False},
        read_layers=tuple(sorted({layer for layers in combinations for layer in layers})),
        read_fractions=tuple(
            sorted({percent / 100 for percents in percentages for percent in percents})
        ),
        layers_per_prompt="several" if any(len(c) > 1 for c in combinations) else "one",
        inject_layer=_field(config, "hook_onto_layer", path),
        formula="add_norm_matched",
        coefficient=_field(config, "steering_coefficient", path),
        transform="none",
        position_ids="from_mask",
        lora_rank=config.get("lora_r"),
        lora_alpha=config.get("lora_alpha"),
        rslora=config.get("use_rslora", adapter.get("use_rslora")),
        extra={
            "imported_from": AO_CONFIG_FILE,
            # Some checkpoints were trained with a rescaled sum (AO_FINAL_NORM_SCALE), which this
            # file has no field for.
            "not_recorded": ["formula", "final_scale", "transform", "collection_adapter"],
        },
    )


def import_latentqa(
    folder: str | os.PathLike[str],
    *,
    read_layer: int,
    base_model: str | None = None,
    placeholder: str = " ?",
    shift_position_ids: bool = True,
) -> OracleContract:
    """The contract of a LatentQA decoder (arXiv:2412.08686), a PEFT folder without a description.

    Args:
        folder: Where the adapter is.
        read_layer: Block that was read; 15 for the published decoders of 32 blocks.
        base_model: The base; by default what the adapter's config names.
        placeholder: Text of one placeholder.
        shift_position_ids: Whether patched tokens keep the target's positions, as in training and
            steering; the published code reads without it.

    Raises:
        ContractError: The folder holds no adapter, or the base is named nowhere.
    """
    adapter = _adapter_config(folder)
    if not adapter:
        raise ContractError(f"{folder} has no {ADAPTER_CONFIG_FILE}, so there is no adapter in it.")
    base = base_model or adapter.get("base_model_name_or_path")
    if not base:
        raise ContractError(
            f"The adapter in {folder} does not name its base model; pass base_model=."
        )
    return OracleContract(
        base_model=base,
        dialect="latentqa",
        prefix_template=PLACEHOLDERS,
        placeholder=placeholder,
        read_layers=(read_layer,),
        layers_per_prompt="one",
        inject_layer=0,
        formula="replace",
        coefficient=1.0,
        transform="none",
        position_ids="shifted" if shift_position_ids else "from_mask",
        lora_rank=adapter.get("r"),
        lora_alpha=adapter.get("lora_alpha"),
        rslora=adapter.get("use_rslora"),
        extra={
            "imported_from": "LatentQA decoder",
            "not_recorded": ["read_layers", "placeholder", "position_ids"],
        },
    )


def _is_lists_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(own, list) and all(isinstance(one, kind) for one in own) for own in value
    )


def _plain_template(template: str, path: Path) -> str:
    plain = template.replace("\\n", "\n")
    for expression in ("{special_token} * {num_positions}", "{special_token}*{num_positions}"):
        if plain.count(expression) == 1:
            return plain.replace(expression, PLACEHOLDERS)
    raise ContractError(
        f"{path}: prefix_template is {template!r}; expected one "
        "'{special_token} * {num_positions}' in it. Pass contract= with the template written as "
        f"{PLACEHOLDERS}."
    )


def _adapter_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / ADAPTER_CONFIG_FILE
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ContractError(f"{path} holds {type(values).__name__}, not a mapping of fields.")
    return values


def _field(config: dict[str, Any], name: str, path: Path) -> Any:
    if name not in config:
        raise ContractError(
            f"{path} lacks the field {name!r}, without which the oracle cannot be used right. Pass "
            "contract=OracleContract(...) with what its authors say."
        )
    return config[name]
