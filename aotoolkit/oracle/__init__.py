"""Floor 2: ask an oracle questions about activations."""

from aotoolkit.oracle.answer import Answer, AnswerGrid, Choice
from aotoolkit.oracle.confidence import (
    Calibration,
    Confidence,
    fit_calibration,
    threshold_for_precision,
)
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.importers import find_contract, import_activation_oracle, import_latentqa
from aotoolkit.oracle.injection import Injection, injecting
from aotoolkit.oracle.inspection import Inspection, inspect_checkpoint
from aotoolkit.oracle.oracle import Oracle
from aotoolkit.oracle.prompt import OraclePrompt, describe_tokenizer, render_prompt
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import Check

__all__ = [
    "Answer",
    "AnswerGrid",
    "Calibration",
    "Check",
    "Choice",
    "Confidence",
    "Injection",
    "Inspection",
    "Oracle",
    "OracleContract",
    "OraclePrompt",
    "VectorTransform",
    "describe_tokenizer",
    "find_contract",
    "fit_calibration",
    "import_activation_oracle",
    "import_latentqa",
    "injecting",
    "inspect_checkpoint",
    "render_prompt",
    "threshold_for_precision",
]
