"""Ask a language model's activations questions.

    import aotoolkit as ao

    lab = ao.nano.load()                                      # embedded models: offline, on a CPU
    acts = lab.model.activations("...", layers=[4], adapter="...")
    lab.oracle.ask("What is the secret word?", acts[-10:])    # the answer, with its controls

Public names are imported on first use, so that `import aotoolkit` (and `aotoolkit --help`) costs
milliseconds and not the seconds that torch and transformers take.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aotoolkit import data, errors, nano, oracle, plots, steering, tracing, training, widgets
    from aotoolkit.errors import AOToolkitError
    from aotoolkit.oracle import Answer, AnswerGrid, Oracle, OracleContract
    from aotoolkit.tracing import Activations, TracedModel

__version__ = "0.1.0"

__all__ = [
    "AOToolkitError",
    "Activations",
    "Answer",
    "AnswerGrid",
    "Oracle",
    "OracleContract",
    "TracedModel",
    "data",
    "errors",
    "nano",
    "oracle",
    "plots",
    "steering",
    "tracing",
    "training",
    "widgets",
]

_HOME = {
    "AOToolkitError": "errors",
    "Activations": "tracing",
    "Answer": "oracle",
    "AnswerGrid": "oracle",
    "Oracle": "oracle",
    "OracleContract": "oracle",
    "TracedModel": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    value = getattr(home, name) if name in _HOME else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
