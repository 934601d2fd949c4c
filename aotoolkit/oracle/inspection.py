"""What a checkpoint says of itself, without asking it anything."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from aotoolkit.errors import VerificationError
from aotoolkit.oracle.checkpoint import checkpoint_folder, checkpoint_tokenizer
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.importers import find_contract
from aotoolkit.oracle.oracle import Oracle
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import Check, check_contract, check_files
from aotoolkit.tracing import TracedModel


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint says of itself, what was checked, and what it leaves open.

    Attributes:
        contract: The contract, from its file or an importer.
        checks: What was verified; only the files where no model was given.
        missing: Fields that the checkpoint does not record.
    """

    contract: OracleContract
    checks: tuple[Check, ...]
    missing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self) | {"ok": self.ok}


def missing_fields(contract: OracleContract) -> tuple[str, ...]:
    """Fields that the contract leaves open, with those its importer had no source for."""
    open_fields = [
        name
        for name in (
            "base_revision",
            "base_digest",
            "tokenizer_digest",
            "placeholder_id",
            "neighbour_ids",
            "read_fractions",
            "lora_rank",
            "lora_alpha",
            "rslora",
            "training_data",
            "licence",
            "aotoolkit_version",
        )
        if getattr(contract, name) in (None, ())
    ]
    return tuple(open_fields) + tuple(contract.extra.get("not_recorded", ()))


def inspect_checkpoint(
    path_or_id: str | os.PathLike[str],
    *,
    model: TracedModel | None = None,
    contract: OracleContract | None = None,
) -> Inspection:
    """What a checkpoint says of itself, what could be verified, and what it leaves open.

    Args:
        path_or_id: A folder, or a Hub id.
        model: The base, to verify against; without one only the files are checked.
        contract: Where the checkpoint has none.

    Raises:
        ModelNotFoundError: There is no such folder or repository.
        ContractError: There is no contract to inspect.
        AdapterLoadError: With a model: the weights do not fit it.
    """
    folder = checkpoint_folder(path_or_id)
    contract = contract or find_contract(folder)
    checks = check_files(contract, folder)
    if model is not None and all(check.ok is not False for check in checks):
        checks = check_contract(
            contract, model, checkpoint_tokenizer(folder, model), VectorTransform.load(folder)
        )
        if all(check.ok is not False for check in checks):
            before = model.adapter_names
            try:
                oracle = Oracle.from_pretrained(folder, model=model, contract=contract)
            except VerificationError as error:
                checks = error.checks
            else:
                checks = oracle.verified
                if oracle.adapter not in before:
                    oracle.unload()
    return Inspection(contract, checks, missing_fields(contract))
