"""A loss curve as SVG: it grows without a flicker, and stands in a snapshot and in a page too.

No figure of plotly, which would be drawn anew at each point and needs a script wherever it is seen.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aotoolkit.widgets.answer_view import table_html

if TYPE_CHECKING:
    from aotoolkit.steering import LossPoint

_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 44
_MOST_TICKS = 6


def curve_html(points: "Sequence[LossPoint]", *, steps: int, axis: str) -> str:
    """The curve up to now, the lowest point marked, and the same numbers as a table.

    Args:
        points: Of the curve, oldest first; at least one.
        steps: Where the horizontal axis ends.
        axis: What the vertical axis measures.
    """
    best = min(points, key=lambda point: point.loss)
    highest = max(point.loss for point in points) or 1.0
    ticks = _ticks(highest)
    top = max(ticks[-1], highest)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / steps

    def y(loss: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / top

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="aop-grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    for tick in _ticks(steps, whole=True):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step'
        f'</text><text transform="translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{axis}</text>'
    )
    line = " ".join(f"{x(point.step):.1f},{y(point.loss):.1f}" for point in points)
    parts.append(f'<polyline class="aop-line" points="{line}"/>')
    parts += [
        f'<circle class="aop-dot" r="3.5" cx="{x(one.step):.1f}" cy="{y(one.loss):.1f}"/>'
        for one in points
    ]
    # Where the label of the lowest point has room: it stands above it, towards the middle.
    anchor = "end" if best.step > steps / 2 else "start"
    parts.append(
        f'<circle class="aop-best" r="7" cx="{x(best.step):.1f}" cy="{y(best.loss):.1f}"/>'
        f'<text class="aop-best-label" x="{x(best.step):.1f}" y="{y(best.loss) - 14:.1f}" '
        f'text-anchor="{anchor}">best: {best.loss:.3f}</text>'
    )
    said = (
        f"Loss curve: {points[0].loss:.3f} at step {points[0].step}, {points[-1].loss:.3f} at step "
        f"{points[-1].step}, lowest {best.loss:.3f} at step {best.step}"
    )
    rows = [(point.step, f"{point.loss:.4f}") for point in points]
    return (
        f'<svg class="aop-curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg>"
        f"<details><summary>The numbers</summary>{table_html(('step', axis), rows)}</details>"
    )


def _ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to at most `highest`, the last one close to it."""
    size = 10 ** math.floor(math.log10(highest / _MOST_TICKS))
    steps = (size * factor for factor in (1, 2, 5, 10))
    step = next(one for one in steps if highest / one <= _MOST_TICKS)
    if whole:
        step = max(1, step)
    return [step * number for number in range(int(highest / step + 1e-9) + 1)]
