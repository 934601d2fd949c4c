"""Layers as buttons that are on or off: all can be seen, and any number chosen."""

from collections.abc import Collection, Sequence
from typing import Any

import ipywidgets
import traitlets as t


class LayerChoice(ipywidgets.HBox):
    """One button for each layer.

    Attributes:
        value: The layers that are on, in order.
    """

    value = t.Tuple()

    def __init__(
        self,
        layers: Sequence[int],
        *,
        chosen: Collection[int],
        trained: Collection[int],
        label_width: str = "5em",
    ):
        """Shows the buttons.

        Args:
            layers: Those that can be chosen.
            chosen: Those that are on at first.
            trained: Those that an oracle was trained on; the others are marked with `*`.
            label_width: Of the label, as wide as those of the fields around it.
        """
        self._setting = False
        self.buttons = {
            layer: ipywidgets.ToggleButton(
                value=layer in chosen,
                description=str(layer) if layer in trained else f"{layer}*",
                tooltip=f"Layer {layer}"
                + ("" if layer in trained else ": no oracle was trained on it"),
            )
            for layer in layers
        }
        for button in self.buttons.values():
            button.add_class("aop-chip")
            button.observe(self._toggled, names="value")
        label = ipywidgets.Label(
            "Layers",
            layout={"width": label_width, "display": "flex", "justify_content": "flex-end"},
        )
        super().__init__(
            [label, *self.buttons.values()],
            layout={"flex_flow": "row wrap", "align_items": "center"},
        )
        self._toggled()

    def show(self, layers: Collection[int]) -> None:
        """Switches exactly these on; those without a button are left out."""
        self._setting = True
        for layer, button in self.buttons.items():
            button.value = layer in layers
        self._setting = False
        self._toggled()

    def _toggled(self, _change: Any = None) -> None:
        if not self._setting:
            self.value = tuple(layer for layer, button in self.buttons.items() if button.value)
