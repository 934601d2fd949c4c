"""Floor 1: read the activations of any decoder-only Hugging Face model."""

from aotoolkit.tracing.activations import Activations, Provenance
from aotoolkit.tracing.difference import ActivationDifference, activation_difference
from aotoolkit.tracing.encoding import Encoded
from aotoolkit.tracing.messages import MessageSpan
from aotoolkit.tracing.model import TracedModel

__all__ = [
    "ActivationDifference",
    "Activations",
    "Encoded",
    "MessageSpan",
    "Provenance",
    "TracedModel",
    "activation_difference",
]
