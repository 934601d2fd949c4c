"""Ask a language model's activations questions.

The public names are imported on first use, so that `import aotoolkit` (and with it
`aotoolkit --help`) does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aotoolkit import nano as nano
    from aotoolkit.oracle import Answer as Answer
    from aotoolkit.oracle import AnswerGrid as AnswerGrid
    from aotoolkit.oracle import Oracle as Oracle
    from aotoolkit.oracle import OracleContract as OracleContract
    from aotoolkit.tracing import Activations as Activations
    from aotoolkit.tracing import TracedModel as TracedModel

__version__ = "0.1.0"

_HOME = {
    "TracedModel": "aotoolkit.tracing",
    "Activations": "aotoolkit.tracing",
    "Oracle": "aotoolkit.oracle",
    "OracleContract": "aotoolkit.oracle",
    "Answer": "aotoolkit.oracle",
    "AnswerGrid": "aotoolkit.oracle",
}
_SUBPACKAGES = ("nano",)

__all__ = [  # noqa: RUF022  the order of the sentence "a model, its activations, an oracle"
    "TracedModel",
    "Activations",
    "Oracle",
    "OracleContract",
    "Answer",
    "AnswerGrid",
    "nano",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"aotoolkit.{name}")
    raise AttributeError(f"module 'aotoolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
