"""Other ways to the same answers, so that an oracle has something to beat."""

from aotoolkit.evals.baselines.black_box import Prefill, Prompting, UserTurn, Voted
from aotoolkit.evals.baselines.cross_fitted import CrossFittedProbe
from aotoolkit.evals.baselines.embedding_map import EmbeddingMap
from aotoolkit.evals.baselines.lens import LogitLens, MeanDifferenceLens, TokenSimilarity
from aotoolkit.evals.baselines.patching import (
    PATCHSCOPES_IDENTITY,
    SELFIE,
    Carrier,
    PatchedPrompt,
)
from aotoolkit.evals.baselines.probe import LinearProbe
from aotoolkit.evals.baselines.prompted import PromptedBaseline
from aotoolkit.evals.baselines.text_reader import TextReader
from aotoolkit.evals.baselines.untrained import UntrainedOracle, prove_adapters_off

__all__ = [
    "PATCHSCOPES_IDENTITY",
    "SELFIE",
    "Carrier",
    "CrossFittedProbe",
    "EmbeddingMap",
    "LinearProbe",
    "LogitLens",
    "MeanDifferenceLens",
    "PatchedPrompt",
    "Prefill",
    "PromptedBaseline",
    "Prompting",
    "TextReader",
    "TokenSimilarity",
    "UntrainedOracle",
    "UserTurn",
    "Voted",
    "prove_adapters_off",
]
