"""Training examples for oracles."""

from aotoolkit.data.abstention import Abstention
from aotoolkit.data.context_prediction import ContextPrediction
from aotoolkit.data.example import Example
from aotoolkit.data.on_policy import OnPolicyTexts, rollouts
from aotoolkit.data.source import LayerChoice, Source
from aotoolkit.data.texts import TextSpec, read_texts

__all__ = [
    "Abstention",
    "ContextPrediction",
    "Example",
    "LayerChoice",
    "OnPolicyTexts",
    "Source",
    "TextSpec",
    "read_texts",
    "rollouts",
]
