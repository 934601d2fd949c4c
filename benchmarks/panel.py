"""How soon the panels react, on the embedded models, without a browser.

Prints a table of

- click on Ask to the first text of the answer (median and 95th percentile);
- the message of a drag to the end of the panel's callbacks. A browser adds the way of the message:
  `tests/browser/test_jupyterlab_journey.py` prints the whole, in a real JupyterLab;
- a grid of 3 layers x 40 tokens with one-word answers: first cell and all cells;
- `import aotoolkit`, `import aotoolkit.widgets` and the panel's own modules, beyond Python's start.

Wall-clock seconds, since that is what a user waits. On a machine with other work on it, they say
more about that.

    python benchmarks/panel.py [--rounds N] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from aotoolkit import nano
from aotoolkit.widgets import OraclePanel

# name -> (what is compared, most seconds)
LIMITS = {
    "ask_to_first_text_median": 0.150,
    "ask_to_first_text_p95": 0.300,
    "drag_to_callback_p95": 0.300,
    "grid_first_cell": 0.3,
    "grid_3x40": 3.0,
    "import_aotoolkit": 0.3,
    "import_widgets": 1.5,
    "import_OraclePanel": 1.5,
}
CHAT = [
    {"role": "user", "content": "Give me a hint. " * 4},
    {"role": "assistant", "content": "It is in the garden, and it is green. " * 3},
]
GRID_LAYERS, GRID_TOKENS = (2, 4, 6), 40


def first_text(panel: OraclePanel) -> float:
    """Seconds from a click on Ask to the first painted text."""
    seen: list[float] = []
    panel.answers.observe(lambda _: seen.append(time.perf_counter()), names="value")
    begun = time.perf_counter()
    panel.ask_button.click()
    panel.wait()
    panel.answers.unobserve_all("value")
    assert not panel.error, panel.error
    return seen[0] - begun


def drag(panel: OraclePanel, count: int) -> float:
    """Seconds that the kernel takes for the message that a drag sends."""
    begun = time.perf_counter()
    panel.tokens.set_state({"selection": list(range(count))})
    return time.perf_counter() - begun


def grid(panel: OraclePanel) -> tuple[float, float]:
    """Seconds from a click to the first cell, and to the last."""
    cells: list[float] = []
    ask_each = panel.oracles["oracle"].ask_each

    def timed(*args: Any, on_answer: Callable[[Any], object], **options: Any) -> Any:
        def told(answer: Any) -> None:
            on_answer(answer)
            cells.append(time.perf_counter())

        return ask_each(*args, on_answer=told, **options)

    oracle: Any = panel.oracles["oracle"]
    oracle.ask_each = timed
    try:
        begun = time.perf_counter()
        panel.grid_button.click()
        panel.wait()
    finally:
        del oracle.ask_each
    assert not panel.error, panel.error
    assert len(cells) == len(GRID_LAYERS) * GRID_TOKENS
    return cells[0] - begun, cells[-1] - begun


def import_seconds(statement: str, rounds: int) -> float:
    """Median seconds of a statement in a new process, beyond Python's own start."""

    def run(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    return statistics.median(run(statement) - run("pass") for _ in range(rounds))


def measure(rounds: int) -> dict[str, float]:
    """Every figure, in seconds."""
    lab = nano.load()
    panel = OraclePanel(
        lab.model,
        lab.oracle,
        prompt=CHAT,
        adapter=next(iter(lab.organisms)),
        layers=GRID_LAYERS,
        max_new_tokens=8,
    )
    panel.layers.show([4])
    panel.tokens.select(slice(-10, None))
    first_text(panel)  # the first forward of a process is slower
    texts = sorted(first_text(panel) for _ in range(rounds))
    drags = sorted(drag(panel, 5 + i % 20) for i in range(rounds))
    panel.layers.show(GRID_LAYERS)
    panel.tokens.select(slice(-GRID_TOKENS, None))
    panel.max_new_tokens.value = 4
    grids = [grid(panel) for _ in range(max(3, rounds // 10))]
    panel.close()
    p95 = max(0, -(-95 * rounds // 100) - 1)
    few = max(3, rounds // 10)
    return {
        "ask_to_first_text_median": statistics.median(texts),
        "ask_to_first_text_p95": texts[p95],
        "drag_to_callback_p95": drags[p95],
        "grid_first_cell": statistics.median(first for first, _ in grids),
        "grid_3x40": statistics.median(last for _, last in grids),
        "import_aotoolkit": import_seconds("import aotoolkit", few),
        "import_widgets": import_seconds("import aotoolkit.widgets", few),
        "import_OraclePanel": import_seconds("from aotoolkit.widgets import OraclePanel", few),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    seconds = measure(arguments.rounds)
    if arguments.json:
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        print(json.dumps({"rounds": arguments.rounds, "seconds": rounded, "limits": LIMITS}))
        return
    print(
        f"n = {arguments.rounds} clicks and drags, {max(3, arguments.rounds // 10)} of the others"
    )
    for name, value in seconds.items():
        limit = LIMITS.get(name)
        verdict = (
            "" if limit is None else f"at most {limit:.2f} s: {'ok' if value <= limit else 'OVER'}"
        )
        print(f"{name:>26}  {value:8.4f} s  {verdict}")


if __name__ == "__main__":
    main()
