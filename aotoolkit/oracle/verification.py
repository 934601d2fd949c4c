"""What can be checked of a checkpoint before it is believed.

Each check says what was found and what was expected, whether it passed or not: `Oracle` refuses
on a failure, `aotoolkit inspect` prints them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from aotoolkit.errors import (
    ChatTemplateError,
    CorruptedFileError,
    LayerError,
    PlaceholderError,
    QuestionError,
    VerificationError,
)
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.digest import tokenizer_digest

WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: The contract's field, or what else was checked.
        found: What is there.
        expected: What the contract says.
        ok: Whether they agree; None where the contract does not say, so nothing was compared, or
            where the caller allows them to differ.
    """

    name: str
    found: str
    expected: str
    ok: bool | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)


def require(checks: Sequence[Check], source: str) -> None:
    """Refuses failed checks.

    Raises:
        VerificationError: Names every failed check, what was found and what was expected.
    """
    failed = [check for check in checks if check.ok is False]
    if failed:
        listed = "; ".join(f"{c.name}: found {c.found}, expected {c.expected}" for c in failed)
        advice = "Use the base model, tokenizer and contract that it was trained with."
        if any(check.name == "base_digest" for check in failed):
            advice += (
                " The same checkpoint rounded to a narrower dtype, or quantised, is another base "
                "too: load it in the dtype that it is stored in, without quantization_config, or "
                "pass allow_other_base=True if you mean it."
            )
        raise VerificationError(
            f"{source} does not fit its contract, so its answers would mean nothing. {listed}. "
            f"{advice}",
            checks,
        )


def _compare(name: str, found: Any, expected: Any) -> Check:
    if expected is None or expected == ():
        return Check(name, _short(found), "not recorded", None)
    return Check(name, _short(found), _short(expected), found == expected)


def _check_base(contract: OracleContract, model: TracedModel, *, allow_other_base: bool) -> Check:
    expected = contract.base_digest
    if expected is not None and model.has_base_digest(expected):
        return _compare("base_digest", expected, expected)
    check = _compare("base_digest", model.base_digest, expected)
    return replace(check, ok=None) if allow_other_base else check


def _short(value: Any) -> str:
    text = str(value)
    return text[:16] + "..." if len(text) == 64 and " " not in text else text


def check_contract(
    contract: OracleContract,
    model: TracedModel,
    tokenizer: PreTrainedTokenizerBase,
    transform: VectorTransform,
    *,
    allow_other_base: bool = False,
) -> tuple[Check, ...]:
    """Checks that need no adapter: base, tokenizer, placeholder, layers, transform."""
    deepest = model.num_layers - 1
    layers_exist = f"blocks 0 to {deepest}"
    checks = [
        _check_base(contract, model, allow_other_base=allow_other_base),
        _compare("tokenizer_digest", tokenizer_digest(tokenizer), contract.tokenizer_digest),
        Check(
            "read_layers",
            str(list(contract.read_layers)),
            layers_exist,
            max(contract.read_layers) <= deepest,
        ),
        Check(
            "inject_layer",
            str(contract.inject_layer),
            layers_exist,
            contract.inject_layer <= deepest,
        ),
        Check(
            "transform", transform.kind, contract.transform, transform.kind == contract.transform
        ),
    ]
    if contract.transform != "none":
        checks.append(_compare("transform_digest", transform.digest, contract.transform_digest))
    try:
        described = describe_tokenizer(contract, tokenizer)
    except (PlaceholderError, ChatTemplateError, QuestionError, LayerError) as error:
        checks.append(Check("placeholder", str(error), "one token in a rendered prompt", False))
        return tuple(checks)
    checks += [
        _compare("placeholder_id", described.placeholder_id, contract.placeholder_id),
        _compare("neighbour_ids", described.neighbour_ids, contract.neighbour_ids),
    ]
    return tuple(checks)


def loaded_adapter(model: TracedModel, folder: Path) -> str | None:
    """Name of the adapter that was loaded from a folder and still is what the folder holds."""
    peft_model = model.peft_model
    candidates = [
        name
        for name in model.adapter_names
        if (source := model.adapter_source(name)) is not None
        and Path(source).expanduser().resolve() == folder.resolve()
    ]
    if peft_model is None or not candidates or not (folder / WEIGHTS_FILE).is_file():
        return None
    config, stored = PeftConfig.from_pretrained(str(folder)), load_file(folder / WEIGHTS_FILE)
    for name in candidates:
        live = _live(peft_model, name)
        whole = set(stored) == set(live) and _num_attached(stored, live) == len(stored)
        if whole and _scaling(peft_model.peft_config[name]) == _scaling(config):
            return name
    return None


def _scaling(config: Any) -> tuple[Any, ...]:
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    return tuple(getattr(config, name, None) for name in names)


def _live(peft_model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(peft_model, adapter_name=adapter, save_embedding_layers=False)


def _num_attached(stored: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor]) -> int:
    return sum(
        name in live and torch.equal(live[name].cpu(), tensor.to(live[name].dtype))
        for name, tensor in stored.items()
    )


def check_adapter(
    contract: OracleContract, model: TracedModel, adapter: str, folder: Path
) -> tuple[Check, ...]:
    """Checks that every tensor of the adapter's file is in the model, and does something."""
    peft_model = model.peft_model
    assert peft_model is not None, "an adapter was loaded"
    config: Any = peft_model.peft_config[adapter]
    live = _live(peft_model, adapter)
    stored = load_file(folder / WEIGHTS_FILE)
    attached = _num_attached(stored, live)
    ups = [tensor for name, tensor in stored.items() if "lora_B" in name]
    moving = sum(bool(tensor.any()) for tensor in ups)
    return (
        _compare("lora_rank", config.r, contract.lora_rank),
        _compare("lora_alpha", config.lora_alpha, contract.lora_alpha),
        _compare("rslora", config.use_rslora, contract.rslora),
        Check(
            "weights",
            f"{attached} tensors attached",
            f"{len(stored)} tensors",
            attached == len(stored) == len(live) > 0,
        ),
        Check("weights_non_zero", f"{moving} of {len(ups)} lora_B", "at least one", moving > 0),
    )


def check_wiring(with_vector: torch.Tensor, with_zeros: torch.Tensor) -> Check:
    """Whether a vector reaches the answer at all.

    Args:
        with_vector: [v], next-token logits with an activation injected.
        with_zeros: [v], the same with a zero vector in its place.
    """
    real, zero = (logits.float().log_softmax(-1) for logits in (with_vector, with_zeros))
    change = float((real - zero).abs().max())
    return Check(
        "wiring",
        f"an activation changes log-probabilities by up to {change:.2g}",
        "more than 0.001",
        change > 1e-3,
    )


def check_files(contract: OracleContract, folder: Path) -> tuple[Check, ...]:
    """Checks that need no model: the adapter's file is whole, the transform the one named."""
    path = folder / WEIGHTS_FILE
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        return (Check("weights", str(error), "safetensors weights of the adapter", False),)
    ups = [tensor for name, tensor in stored.items() if "lora_B" in name]
    moving = sum(bool(tensor.any()) for tensor in ups)
    non_zero = Check(
        "weights_non_zero", f"{moving} of {len(ups)} lora_B", "at least one", moving > 0
    )
    try:
        transform = VectorTransform.load(folder)
    except CorruptedFileError as error:
        return (non_zero, Check("transform", str(error), contract.transform, False))
    checks = (
        non_zero,
        Check(
            "transform", transform.kind, contract.transform, transform.kind == contract.transform
        ),
    )
    if contract.transform == "none":
        return checks
    return (*checks, _compare("transform_digest", transform.digest, contract.transform_digest))
