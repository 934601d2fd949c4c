"""Floor 5: what can be clicked in a notebook.

    acts = model.activations(chat, layers=[4])
    tokens = TokenSelect.from_activations(acts).select("user")
    oracle.ask("What is the secret word?", acts[tokens.selection])

    grid = LayerTokenGrid.from_answers(oracle.ask_each("What is it?", acts))
    grid.save_html("grid.html")

    OraclePanel(model, oracle)    # all of it by hand: prompt, tokens, layers, question, answer
    SteerPanel(model, oracle)     # and the other way: a behaviour, its pairs, a run, both models

Widgets hold no model logic: what they show was computed by a public call, and what was clicked is
an argument of the next one. Public names are imported on first use, so that a token list needs
neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aotoolkit.widgets.audit_panel import AuditPanel
    from aotoolkit.widgets.export import page, save_page
    from aotoolkit.widgets.layer_token_grid import LayerTokenGrid
    from aotoolkit.widgets.oracle_panel import OraclePanel
    from aotoolkit.widgets.steer_panel import SteerPanel
    from aotoolkit.widgets.sweep_view import SweepView
    from aotoolkit.widgets.token_select import TokenSelect
    from aotoolkit.widgets.training_view import TrainingView

__all__ = [
    "AuditPanel",
    "LayerTokenGrid",
    "OraclePanel",
    "SteerPanel",
    "SweepView",
    "TokenSelect",
    "TrainingView",
    "page",
    "save_page",
]

_HOME = {
    "AuditPanel": "audit_panel",
    "LayerTokenGrid": "layer_token_grid",
    "OraclePanel": "oracle_panel",
    "SteerPanel": "steer_panel",
    "SweepView": "sweep_view",
    "TokenSelect": "token_select",
    "TrainingView": "training_view",
    "page": "export",
    "save_page": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
