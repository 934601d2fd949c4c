"""Answers at each layer and token, as a table to walk through."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import traitlets as t

from aotoolkit.errors import LayerError, PositionError
from aotoolkit.widgets.base import FrontEnd, front_end, short, style_sheet, visible

if TYPE_CHECKING:
    from aotoolkit.oracle import Answer, AnswerGrid

MAX_CELLS = 10_000  # more take seconds to lay out in a browser


class LayerTokenGrid(FrontEnd):
    """Answers, a row for each layer and a column for each token.

    Arrows move, Home and End go along a row, PageUp and PageDown along a column, Enter or a click
    chooses. Answers can be searched.

    Attributes:
        layers: the rows.
        positions: the columns, as positions in the target's prompt.
        tokens: the tokens there.
        texts: `[layer][position]`, the answers; "" where there is none yet.
        values: `[layer][position]`, from 0 to 1, shown as a colour; None where there is none.
        supported: `[layer][position]`, whether the activations support the answer; None where
            that is not known.
        cell: `[layer, position]` of the chosen cell, or None.
        value_label: what the values are.
    """

    _esm = front_end("layer_token_grid")
    _css = style_sheet("layer_token_grid")

    layers = t.List(t.Int()).tag(sync=True)
    positions = t.List(t.Int()).tag(sync=True)
    tokens = t.List(t.Unicode()).tag(sync=True)
    texts = t.List(t.List(t.Unicode())).tag(sync=True)
    values: Any = t.List(t.List(t.Float(allow_none=True))).tag(sync=True)
    supported = t.List(t.List(t.Bool(allow_none=True))).tag(sync=True)
    cell = t.List(t.Int(), None, allow_none=True).tag(sync=True)
    label = t.Unicode("Answers by layer and token").tag(sync=True)
    value_label = t.Unicode("probability").tag(sync=True)

    _TOGETHER = ("layers", "positions", "tokens", "texts", "values", "supported", "cell")
    _streamed = False

    def __init__(
        self,
        *,
        layers: Sequence[int] = (),
        positions: Sequence[int] | None = None,
        tokens: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Make a grid; cells that are not given are empty, for `put`.

        Args:
            layers: the rows.
            positions: the columns; default: 0, 1, ...
            tokens: the tokens there.
            **options: other traits.
        """
        columns = list(range(len(tokens)) if positions is None else positions)
        empty = {
            "texts": [[""] * len(columns) for _ in layers],
            "values": [[None] * len(columns) for _ in layers],
            "supported": [[None] * len(columns) for _ in layers],
        }
        super().__init__(
            layers=list(layers), positions=columns, tokens=list(tokens), **(empty | options)
        )
        self.on_msg(self._answer_view)

    @classmethod
    def from_answers(cls, answers: "AnswerGrid", **options: Any) -> Self:
        """The answers of `Oracle.ask_each`.

        A cell's colour is its confidence where that was asked for, else the probability of the
        answer for each of its tokens (the geometric mean).

        Args:
            answers: complete or cancelled.
            **options: other traits.
        """
        # A token asked about twice has one answer, so one column.
        columns = dict(zip(answers.positions, answers.tokens, strict=True))
        layers = list(dict.fromkeys(answers.layers))
        grid = [[answers.cells.get((layer, position)) for position in columns] for layer in layers]
        return cls(
            layers=layers,
            positions=list(columns),
            tokens=list(columns.values()),
            texts=[["" if cell is None else cell.text for cell in row] for row in grid],
            values=[[None if cell is None else _value(cell) for cell in row] for row in grid],
            supported=[[None if cell is None else cell.supported for cell in row] for row in grid],
            **({"label": answers.question} | options),
        )

    def put(
        self,
        layer: int,
        position: int,
        text: str,
        value: float | None = None,
        *,
        supported: bool | None = None,
    ) -> None:
        """Fill one cell, in every open view, without sending the others again.

        Args:
            layer: one of `layers`.
            position: one of `positions`.
            text: the answer.
            value: from 0 to 1.
            supported: whether the activations support the answer.

        Raises:
            LayerError: no such row.
            PositionError: no such column.
            traitlets.TraitError: a value below 0 or above 1.
        """
        row, column = self._place(layer, position)
        _refuse_value(value)
        # In place, which traitlets does not notice: a new list would send every cell again. Views
        # that are opened later ask for the lists (`_answer_view`).
        self.texts[row][column] = text
        self.values[row][column] = None if value is None else float(value)
        self.supported[row][column] = supported
        self._streamed = True
        self.send(
            {
                "kind": "cell",
                "row": row,
                "column": column,
                "text": text,
                "value": self.values[row][column],
                "supported": supported,
            }
        )

    def put_answer(self, layer: int, position: int, answer: "Answer") -> None:
        """`put` with the text, the confidence and the verdict of an `Answer`."""
        self.put(layer, position, answer.text, _value(answer), supported=answer.supported)

    def _place(self, layer: int, position: int) -> tuple[int, int]:
        if layer not in self.layers:
            raise LayerError(f"Layer {layer} is no row of this grid; its layers are {self.layers}.")
        if position not in self.positions:
            raise PositionError(
                f"Position {position} is no column of this grid; its positions are "
                f"{short(self.positions)}."
            )
        return self.layers.index(layer), self.positions.index(position)

    def _answer_view(self, _widget: Any, message: Any, _buffers: Any) -> None:
        """A view has opened: it may have missed cells that were put before."""
        if isinstance(message, dict) and message.get("kind") == "opened" and self._streamed:
            self.send_state(["texts", "values", "supported"])

    @t.validate(*_TOGETHER)
    def _fits(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        _refuse_misfits({trait: getattr(self, trait) for trait in self._TOGETHER} | {name: value})
        return value

    def static_html(self) -> str:
        """A table with a row for each token, which reads down as the text does."""
        head = "".join(f"<th>layer {layer}</th>" for layer in self.layers)
        rows = []
        for column, (position, token) in enumerate(zip(self.positions, self.tokens, strict=True)):
            cells = "".join(
                f"<td>{self._static_cell(row, column)}</td>" for row in range(len(self.layers))
            )
            code = html.escape(visible(token))
            rows.append(f"<tr><th>{position}</th><td><code>{code}</code></td>{cells}</tr>")
        starred = any(False in row for row in self.supported)
        note = "<p>* a control without the activations says the same</p>" if starred else ""
        return (
            f"<div><p><b>{html.escape(self.label)}</b></p><table><thead><tr><th></th><th></th>"
            f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{note}</div>"
        )

    def _static_cell(self, row: int, column: int) -> str:
        text = html.escape(" ".join(self.texts[row][column].split()))
        star = "*" if self.supported[row][column] is False else ""
        chosen = self.cell == [self.layers[row], self.positions[column]]
        return f"<mark>{text}{star}</mark>" if chosen else f"{text}{star}"

    def __repr__(self) -> str:
        filled = sum(text != "" for row in self.texts for text in row)
        return (
            f"LayerTokenGrid({len(self.layers)} layers x {len(self.tokens)} tokens, {filled} of "
            f"{len(self.layers) * len(self.tokens)} cells filled)"
        )


def _value(answer: "Answer") -> float:
    if answer.confidence is not None:
        return answer.confidence.value
    # A sum of float32 logarithms may end a little above nought.
    return min(1.0, math.exp(answer.mean_log_prob))


def _refuse_misfits(values: dict[str, Any]) -> None:
    layers, positions, tokens = (values[name] for name in ("layers", "positions", "tokens"))
    if len(positions) != len(tokens):
        raise t.TraitError(
            f"{len(tokens)} tokens do not fit {len(positions)} positions; give one for each token"
        )
    for name in ("layers", "positions"):
        if len(set(values[name])) != len(values[name]):
            raise t.TraitError(f"{name} {short(values[name])} has a number twice; give each once")
    count = len(layers) * len(tokens)
    if count > MAX_CELLS:
        raise t.TraitError(
            f"{len(layers)} layers x {len(tokens)} tokens are {count:,} cells; a grid has at most "
            f"{MAX_CELLS:,}. Ask about fewer layers, or about a part of the tokens, as acts[-64:]"
        )
    for name in ("texts", "values", "supported"):
        shape = [len(row) for row in values[name]]
        if shape != [len(tokens)] * len(layers):
            raise t.TraitError(
                f"{name} has rows of {short(shape)}; give {len(layers)} rows (layers) of "
                f"{len(tokens)} (tokens)"
            )
    for row in values["values"]:
        for value in row:
            _refuse_value(value)
    cell = values["cell"]
    if cell is not None and not (len(cell) == 2 and cell[0] in layers and cell[1] in positions):
        raise t.TraitError(
            f"cell {cell} is not in the grid; give [layer, position] with a layer of "
            f"{short(layers)} and a position of {short(positions)}, or None"
        )


def _refuse_value(value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise t.TraitError(f"value {value} of a cell is outside 0 to 1; give None for no value")
