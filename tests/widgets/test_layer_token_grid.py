"""The grid without a browser: what fits, cells one by one, what is shown without script."""

import math
import re
from typing import Any

import pytest
from traitlets import TraitError

from aotoolkit.errors import LayerError, PositionError
from aotoolkit.oracle import Answer, AnswerGrid
from aotoolkit.oracle.confidence import Confidence
from aotoolkit.widgets import LayerTokenGrid


def answer(text: str = "water", log_prob: float = -1.0, **options: Any) -> Answer:
    values: dict[str, Any] = {
        "question": "What is it?",
        "text": text,
        "controls": {},
        "log_prob": log_prob,
        "num_tokens": 2,
        "layers": (4,),
        "positions": (7,),
        "tokens": (" it",),
        "provenance": {},
    }
    return Answer(**(values | options))


def answers(cells: dict[tuple[int, int], Answer], **options: Any) -> AnswerGrid:
    values: dict[str, Any] = {
        "question": "What is it?",
        "layers": (2, 4),
        "positions": (7, 9),
        "tokens": (" it", "<b>"),
    }
    return AnswerGrid(cells=cells, **(values | options))


def test_answers_become_cells():
    confidence = Confidence(kind="mode_frequency", value=0.75, raw=0.75, n=4)
    grid = LayerTokenGrid.from_answers(
        answers(
            {
                (2, 7): answer("a", controls={"no activation": "a"}),
                (2, 9): answer("b", controls={"no activation": "other"}, confidence=confidence),
                (4, 9): answer("c", log_prob=1e-6),
            }
        )
    )
    assert grid.label == "What is it?"
    assert grid.texts == [["a", "b"], ["", "c"]]
    assert grid.values == [[pytest.approx(math.exp(-0.5)), 0.75], [None, 1.0]]
    assert grid.supported == [[False, True], [None, None]]
    assert repr(grid) == "LayerTokenGrid(2 layers x 2 tokens, 3 of 4 cells filled)"


def test_a_token_asked_about_twice_is_one_column():
    grid = LayerTokenGrid.from_answers(
        answers({(2, 7): answer()}, layers=(2, 2), positions=(7, 7), tokens=(" it", " it"))
    )
    assert (grid.layers, grid.positions, grid.tokens) == ([2], [7], [" it"])


def test_the_grid_of_an_oracle(lab):
    organism = next(iter(lab.model.adapter_names))
    chat = [{"role": "user", "content": "Give me a hint."}]
    acts = lab.model.activations(chat, layers=[2, 4], adapter=organism)[-3:]
    asked = lab.oracle.ask_each("What is the secret word?", acts)
    grid = LayerTokenGrid.from_answers(asked)
    for row, layer in enumerate(grid.layers):
        for column, position in enumerate(grid.positions):
            one = asked[layer, position]
            assert grid.texts[row][column] == one.text
            assert grid.supported[row][column] == one.supported
    assert all(0 <= value <= 1 for row in grid.values for value in row)


def test_put_sends_one_cell_and_keeps_it(monkeypatch: pytest.MonkeyPatch):
    grid = LayerTokenGrid(layers=[2, 4], tokens=["a", "b"], positions=[7, 9])
    sent, states = [], []
    monkeypatch.setattr(grid, "send", sent.append)
    monkeypatch.setattr(grid, "send_state", states.append)
    # A view that opens before there is anything to miss asks for nothing.
    grid._answer_view(grid, {"kind": "opened"}, [])
    assert states == []
    grid.put(4, 9, "water", 1, supported=True)
    cell = {"row": 1, "column": 1, "text": "water", "value": 1.0, "supported": True}
    assert sent == [{"kind": "cell", **cell}]
    assert grid.texts == [["", ""], ["", "water"]]
    assert grid.front_end_state()["values"] == [[None, None], [None, 1.0]]
    grid.put_answer(2, 7, answer("b"))
    assert grid.texts[0][0] == "b"
    grid._answer_view(grid, {"kind": "opened"}, [])
    assert states == [["texts", "values", "supported"]]


def test_put_refuses_what_is_not_in_the_grid():
    grid = LayerTokenGrid(layers=[2, 4], tokens=["a"], positions=[7])
    with pytest.raises(
        LayerError, match=r"Layer 3 is no row of this grid; its layers are \[2, 4\]"
    ):
        grid.put(3, 7, "x")
    with pytest.raises(PositionError, match="Position 0 is no column"):
        grid.put(2, 0, "x")
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(TraitError, match="outside 0 to 1; give None"):
            grid.put(2, 7, "x", value)
    assert grid.texts == [[""], [""]]


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"positions": [1]}, "2 tokens do not fit 1 positions; give one for each token"),
        ({"positions": [1, 1]}, "positions [1, 1] has a number twice"),
        ({"layers": [3, 3]}, "layers [3, 3] has a number twice"),
        ({"texts": [["a"]]}, "texts has rows of [1]; give 1 rows (layers) of 2 (tokens)"),
        ({"values": [[0.5, 2.0]]}, "value 2.0 of a cell is outside 0 to 1"),
        ({"supported": []}, "supported has rows of []"),
        ({"cell": [3, 5]}, "cell [3, 5] is not in the grid; give [layer, position]"),
        ({"cell": [3]}, "cell [3] is not in the grid"),
        (
            {"layers": list(range(64)), "tokens": ["x"] * 512},
            "64 layers x 512 tokens are 32,768 cells; a grid has at most 10,000. Ask about fewer",
        ),
    ],
)
def test_what_does_not_fit_is_refused(traits: dict[str, Any], message: str):
    with pytest.raises(TraitError, match=re.escape(message)):
        LayerTokenGrid(**({"layers": [3], "tokens": ["a", "b"]} | traits))


def test_a_cell_can_be_chosen_and_let_go():
    grid = LayerTokenGrid(layers=[3], tokens=["a", "b"], positions=[5, 6], cell=[3, 6])
    seen = []
    grid.observe(lambda change: seen.append(change["new"]), "cell")
    grid.cell = None
    grid.cell = [3, 5]
    assert seen == [None, [3, 5]]


def test_static_html_is_a_table_that_reads_down():
    grid = LayerTokenGrid(layers=[2, 4], tokens=["<b>", "\n"], positions=[7, 8], cell=[4, 8])
    grid.put(2, 7, "</td><script>", supported=False)
    grid.put(4, 8, "a\n  boat", supported=True)
    page = grid.static_html()
    assert "<script>" not in page
    assert "<tr><th>7</th><td><code>&lt;b&gt;</code></td>" in page
    assert "<td>&lt;/td&gt;&lt;script&gt;*</td>" in page
    assert "<mark>a boat</mark>" in page
    assert "* a control without the activations says the same" in page
    grid.put(2, 7, "", supported=None)
    assert "* a control" not in grid.static_html()
