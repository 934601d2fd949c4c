"""Training examples for oracles."""

from aotoolkit.data.example import Example

__all__ = ["Example"]
