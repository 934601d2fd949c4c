"""Figures of what was measured: evaluations, confidences, sweeps, training runs and scaling.

Plotly, of the extra `notebook`; `aotoolkit.evals.figures` has the style, and those figures that the
report of an evaluation holds.
"""

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aotoolkit.errors import CorruptedFileError, ModelNotFoundError
from aotoolkit.evals.figures import (
    COLOURS,
    INK,
    MARKERS,
    eval_ablation,
    eval_ladder,
    eval_table,
    plotly,
    reliability_diagram,
    style,
)
from aotoolkit.evals.scaling import ScalingPoint, ScalingResult
from aotoolkit.evals.statistics import Estimate
from aotoolkit.evals.sweep import Setting, SweepCell, SweepResult
from aotoolkit.training.checkpoints import read_rows
from aotoolkit.training.trainer import TRAINING_ROWS, VALIDATION_ROWS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "COLOURS",
    "INK",
    "MARKERS",
    "eval_ablation",
    "eval_ladder",
    "eval_table",
    "reliability_diagram",
    "scaling_curves",
    "sweep_heatmap",
    "training_curves",
]

_PANELS = (("loss", "held-out loss (nats a token)"), ("exact_match", "exact match"), ("auc", "AUC"))


def scaling_curves(result: ScalingResult) -> "Figure":
    """Held-out loss and share of hidden words named, against data and against the base's size.

    On the left a line for each base, on the right the same points with a line for each number of
    examples; bars are 95 % intervals. Dotted lines are without activations, their intervals are
    said on hovering.

    Args:
        result: What `aotoolkit.nano.scaling.run` returned, or `ScalingResult.load`.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    go, make_subplots = plotly()
    panels = (("loss", "held-out loss (nats a token)"), ("word", "hidden words named"))
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[
            f"{title}, by {by}" for _, title in panels for by in ("training examples", "base size")
        ],
        vertical_spacing=0.14,
        horizontal_spacing=0.06,
    )
    lines: list[tuple[str, list[ScalingPoint], int]] = [
        (f"base {base}", [point for point in result.points if point.base == base], 1)
        for base in result.base_names
    ]
    lines += [
        (f"{size:,} examples", [point for point in result.points if point.examples == size], 2)
        for size in result.sizes
    ]
    for index, (label, points, column) in enumerate(lines):
        for row, (name, _) in enumerate(panels, start=1):
            for end, dash in (("", "solid"), ("_without", "dot")):
                estimates: list[Estimate] = [getattr(point, f"{name}{end}") for point in points]
                colour = COLOURS[index % len(COLOURS)]
                figure.add_trace(
                    go.Scatter(
                        x=[p.examples if column == 1 else p.parameters for p in points],
                        y=[estimate.mean for estimate in estimates],
                        error_y=None if end else _bars(estimates, colour),
                        customdata=[
                            [estimate.text, html.escape(point.base)]
                            for estimate, point in zip(estimates, points, strict=True)
                        ],
                        name=html.escape(label),
                        legendgroup=label,
                        showlegend=row == 1 and not end,
                        mode="lines+markers",
                        line={"color": colour, "dash": dash, "width": 1 if end else 2},
                        marker={
                            "color": colour,
                            "symbol": MARKERS[index % len(MARKERS)],
                            "size": 4 if end else 8,
                        },
                        hovertemplate="%{customdata[0]}<br>base %{customdata[1]}"
                        + (", without activations" if end else ""),
                    ),
                    row=row,
                    col=column,
                )
    for column, (title, values) in enumerate(
        (
            ("training examples", result.sizes),
            ("parameters of the base", sorted({point.parameters for point in result.points})),
        ),
        start=1,
    ):
        figure.update_xaxes(
            type="log",
            title_text=title,
            tickvals=list(values),
            ticktext=[_short_number(value) for value in values],
            col=column,
        )
    top = max(max(point.word.high, point.word_without.high) for point in result.points)
    figure.update_yaxes(range=[-0.03 * top, 1.05 * top], row=2)
    word = result.points[0].word
    seeds = f", {word.num_seeds} seeds" if word.num_seeds > 1 else ""
    style(
        figure,
        title=f"{html.escape(str(result.settings.get('dialect', 'oracle')))}: n = "
        f"{result.points[0].loss.n:,} documents, {word.n} words{seeds}; dotted without activations",
        height=760,
    )
    return figure


def sweep_heatmap(result: SweepResult) -> "Figure":
    """Share of right replies by layer and window, a panel for each coefficient and temperature.

    A cell says the share, its interval, and the share without activations; a frame marks the best.

    Args:
        result: What `aotoolkit.evals.sweep.sweep` returned.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    go, make_subplots = plotly()
    settings = [cell.setting for cell in result.cells]
    layers = list(dict.fromkeys(setting.layers for setting in settings))
    windows = list(dict.fromkeys(setting.window for setting in settings))
    panels = list(dict.fromkeys(_panel(setting) for setting in settings))
    cells = {(_panel(c.setting), c.setting.layers, c.setting.window): c for c in result.cells}
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        subplot_titles=[
            f"coefficient {coefficient:g}, "
            + (f"temperature {temperature:g}" if temperature else "greedy")
            for coefficient, temperature in panels
        ],
    )
    columns = ["whole span" if window == "all" else f"last {window}" for window in windows]
    rows = ["+".join(map(str, own)) for own in layers]
    for number, panel in enumerate(panels, start=1):
        grid = [[cells.get((panel, own, window)) for window in windows] for own in layers]
        figure.add_trace(
            go.Heatmap(
                x=columns,
                y=rows,
                z=[[_share(cell, result) for cell in row] for row in grid],
                text=[[_said(cell, result) for cell in row] for row in grid],
                texttemplate="%{text}",
                hovertemplate="layer %{y}, %{x}<br>%{text}<extra></extra>",
                coloraxis="coloraxis",
                xgap=2,
                ygap=2,
            ),
            row=1,
            col=number,
        )
        figure.update_xaxes(title_text="positions read", type="category", row=1, col=number)
        figure.update_yaxes(type="category", row=1, col=number)
    best = result.best.setting
    at, col = layers.index(best.layers), windows.index(best.window)
    figure.add_shape(
        type="rect",
        x0=col - 0.5,
        x1=col + 0.5,
        y0=at - 0.5,
        y1=at + 0.5,
        line={"color": COLOURS[1], "width": 4},
        row=1,
        col=panels.index(_panel(best)) + 1,
    )
    figure.update_yaxes(title_text="layer", row=1, col=1)
    cell = result.best
    style(
        figure,
        title=f"{result.match.capitalize()} match of {cell.num_examples:,} examples in "
        f"{cell.exact_match.n:,} groups, 95 % interval over groups; best framed",
        height=180 + 80 * len(rows),
    )
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": f"{result.match} match"}, "tickformat": ".0%"},
        }
    )
    return figure


def training_curves(run_folder: str | os.PathLike[str]) -> "Figure":
    """Held-out loss, exact match and AUC by source, with the activations and without them.

    Solid lines are with the activations, dashed ones of the same colour without; what the
    activations contribute is the distance between the two. The training loss stands with the
    held-out loss. A run that is still going on can be plotted.

    Args:
        run_folder: The `output_dir` of a training run.

    Raises:
        MissingExtraError: Plotly is not installed.
        ModelNotFoundError: The folder holds no training run.
        CorruptedFileError: A row of its files cannot be read.
    """
    go, make_subplots = plotly()
    folder = Path(run_folder)
    training, validation = (_rows(folder / name) for name in (TRAINING_ROWS, VALIDATION_ROWS))
    if not training and not validation:
        raise ModelNotFoundError(
            f"{folder} has neither {TRAINING_ROWS} nor {VALIDATION_ROWS} with a row in it, so it "
            "is no training run, or nothing was logged yet. Give the output_dir of train_oracle."
        )
    sources = sorted({name for row in validation for name in row["sources"]})
    curves = {"all": [(row["step"], row) for row in validation]}
    if len(sources) > 1:
        for name in sources:
            curves[name] = [
                (row["step"], row["sources"][name]) for row in validation if name in row["sources"]
            ]
    panels = [
        (key, title)
        for key, title in _PANELS
        if key == "loss" or any(v.get(key) is not None for c in curves.values() for _, v in c)
    ]
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, subplot_titles=[title for _, title in panels]
    )
    if training:
        figure.add_trace(
            go.Scatter(
                x=[row["step"] for row in training],
                y=[row["loss"] for row in training],
                name="training loss",
                mode="lines",
                line={"color": INK, "width": 1},
            ),
            row=1,
            col=1,
        )
    for number, (key, _) in enumerate(panels, start=1):
        for index, (name, curve) in enumerate(curves.items()):
            _add_curves(go, figure, name, index, curve, key, row=number)
    figure.update_xaxes(title_text="step", row=len(panels), col=1)
    for number, (key, _) in enumerate(panels, start=1):
        if key != "loss":
            figure.update_yaxes(range=[-0.03, 1.03], row=number, col=1)
    held_out = validation[-1]["n"] if validation else 0
    style(
        figure,
        title=f"{html.escape(folder.name)}: {held_out:,} held-out examples; dashed without "
        "activations",
        height=120 + 260 * len(panels),
    )
    return figure


def _add_curves(
    go: Any,
    figure: "Figure",
    name: str,
    index: int,
    curve: Sequence[tuple[int, Mapping[str, Any]]],
    key: str,
    *,
    row: int,
) -> None:
    """One figure of one source, with activations and without."""
    for suffix, dash in (("", "solid"), ("_without", "dash")):
        points = [(step, v[f"{key}{suffix}"], v["n"]) for step, v in curve if v[key] is not None]
        if not points:
            continue
        label = f"{html.escape(name)}{', without activations' if suffix else ''}"
        colour = COLOURS[index % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[step for step, _, _ in points],
                y=[value for _, value, _ in points],
                customdata=[n for _, _, n in points],
                name=label,
                legendgroup=label,
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 3 if name == "all" else 1.5},
                marker={"color": colour, "symbol": MARKERS[index % len(MARKERS)]},
                hovertemplate="%{y:.3f} (n = %{customdata} examples)",
            ),
            row=row,
            col=1,
        )


def _bars(estimates: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """The intervals, from the means."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [estimate.high - estimate.mean for estimate in estimates],
        "arrayminus": [estimate.mean - estimate.low for estimate in estimates],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _short_number(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"


def _panel(setting: Setting) -> tuple[float, float]:
    return setting.coefficient, setting.temperature


def _share(cell: SweepCell | None, result: SweepResult) -> float | None:
    return None if cell is None else cell.figures(result.match)[0].mean


def _said(cell: SweepCell | None, result: SweepResult) -> str:
    if cell is None:
        return ""
    right, without, _ = cell.figures(result.match)
    return f"{right}<br>without: {without.mean:.2f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_rows(path)
    except json.JSONDecodeError as error:
        raise CorruptedFileError(
            f"A line of {path} is not JSON ({error}). Delete that line to plot the rest."
        ) from error
