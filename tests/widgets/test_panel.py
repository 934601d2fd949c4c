"""What all panels do: nothing of a closed one stays."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import SOON, FakeModel, FakeOracle
from ipywidgets.widgets import widget

from aotoolkit.widgets import AuditPanel, OraclePanel, SteerPanel

CHAT = [{"role": "user", "content": "Hello."}]


def of_oracle(_lab: Any) -> OraclePanel:
    panel = OraclePanel(FakeModel(), FakeOracle(), prompt=CHAT, adapter="red", layers=[2, 4])  # pyright: ignore[reportArgumentType]
    panel.ask()
    assert panel.wait(SOON)
    panel.fill_grid()
    assert panel.wait(SOON)
    panel.editor.kind.value = "Plain text"  # turns are kept, out of sight
    return panel


def of_audit(lab: Any) -> AuditPanel:
    return AuditPanel(lab.model, [next(iter(lab.organisms))])  # without an oracle: less is shown


def of_steering(lab: Any) -> SteerPanel:
    return SteerPanel(lab.model, lab.oracle, behaviour="Talk about boats.")


@pytest.mark.parametrize("make", [of_oracle, of_audit, of_steering])
def test_closing_a_panel_closes_all_that_is_in_it(make: Callable, lab):
    before = set(widget._instances)
    panel = make(lab)
    assert len(widget._instances) > len(before) + 20
    panel.close()
    left = [widget._instances[key] for key in set(widget._instances) - before]
    assert left == []
    panel.close()  # again: nothing to do
