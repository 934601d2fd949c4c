"""A plotly figure inside a panel, as a finished picture that is replaced when it changes.

Plotly's own live widget sends five megabytes for each figure, into every saved notebook too, and
has nothing that a keyboard can reach. A figure as an output costs its numbers alone.
"""

import json
from typing import TYPE_CHECKING

import ipywidgets

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class FigureBox(ipywidgets.Output):
    """Shows one figure; a front end without plotly shows the table that comes with it."""

    def show(self, figure: "Figure", table: str) -> None:
        """Replaces the figure.

        Args:
            figure: What is shown. Unlike a context manager this works on any thread.
            table: The same numbers as HTML.
        """
        data = {
            "application/vnd.plotly.v1+json": json.loads(str(figure.to_json())),
            "text/html": table,
        }
        self.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


class FigurePage:
    """A figure in an exported page, with the script that draws it."""

    def __init__(self, figure: "Figure") -> None:
        self._figure = figure

    def _repr_html_(self) -> str:
        return self._figure.to_html(full_html=False, include_plotlyjs=True)
