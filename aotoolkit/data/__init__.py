"""Training examples for oracles."""

from aotoolkit.data.example import Example
from aotoolkit.data.source import LayerChoice, Source

__all__ = ["Example", "LayerChoice", "Source"]
