"""The grid in a real browser: keyboard, search, streamed cells, and how long a large one takes."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from aotoolkit.widgets import LayerTokenGrid

WORDS = ["water", "a boat", "the blue sea", "red", "nothing that I can name here", "</script><b>"]


def grid(layers: int = 4, tokens: int = 12, *, seed: int = 0) -> LayerTokenGrid:
    """Answers, values and verdicts of all kinds, and some cells that are empty."""
    chance = random.Random(seed)
    made = LayerTokenGrid(
        layers=range(0, 3 * layers, 3),
        tokens=[f" tok{i}" if i % 5 else "\n" for i in range(tokens)],
        positions=range(7, 7 + tokens),
        label="What is it thinking of?",
    )
    for layer in made.layers:
        for position in made.positions:
            if chance.random() < 0.9:
                text, verdict = chance.choice(WORDS), chance.choice([True, False, None])
                made.put(layer, position, text, chance.random(), supported=verdict)
    return made


def cell(page: Any, row: int, column: int) -> Any:
    return page.locator(f'td[data-r="{row}"][data-c="{column}"]')


def stream(page: Any, row: int, column: int, text: str, value: float | None = None) -> None:
    message = {"kind": "cell", "row": row, "column": column, "text": text, "value": value}
    page.evaluate("(m) => aoModels[0].emit('msg:custom', m)", message | {"supported": False})


def test_the_keyboard_walks_and_chooses(show: Callable):
    page = show(grid())
    page.evaluate(
        "window.leaked = []; document.addEventListener('keydown', (e) => leaked.push(e.key))"
    )
    cell(page, 0, 0).focus()
    walk = [
        ("ArrowRight", 0, 1),
        ("ArrowDown", 1, 1),
        ("End", 1, 11),
        ("ArrowRight", 1, 11),
        ("PageDown", 3, 11),
        ("Home", 3, 0),
        ("ArrowDown", 3, 0),
        ("PageUp", 0, 0),
        ("Control+End", 3, 11),
        ("Control+Home", 0, 0),
        ("ArrowUp", 0, 0),
        ("ArrowDown", 1, 0),
    ]
    for key, row, column in walk:
        page.keyboard.press(key)
        expect(cell(page, row, column)).to_be_focused()
    assert page.locator('td[tabindex="0"]').count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("saves") == [{"cell": [3, 7]}]
    expect(cell(page, 1, 0)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("b")
    assert "Enter" not in page.evaluate("leaked")
    assert "b" not in page.evaluate("leaked")


def test_a_click_chooses_and_the_kernel_can(show: Callable):
    page = show(grid())
    cell(page, 2, 3).click()
    assert page.evaluate("saves") == [{"cell": [6, 10]}]
    expect(cell(page, 2, 3)).to_be_focused()
    page.evaluate("aoModels[0].set('cell', [9, 8])")
    expect(page.locator('td[aria-selected="true"]')).to_have_count(1)
    expect(cell(page, 3, 1)).to_have_attribute("aria-selected", "true")


def test_hover_and_focus_fill_the_line(show: Callable):
    made = LayerTokenGrid(layers=[16], tokens=[" is", "\n"], positions=[5, 6])
    made.put(16, 5, "an answer that is too long for its cell, but not for the line", 0.36)
    made.put(16, 6, "wet", 1, supported=False)
    page = show(made)
    cell(page, 0, 0).hover()
    expect(page.locator(".ao-detail")).to_have_text(
        "layer 16 · token 5 “·is” · probability 0.360: "
        "an answer that is too long for its cell, but not for the line"
    )
    cell(page, 0, 1).focus()
    expect(page.locator(".ao-detail")).to_have_text(
        "layer 16 · token 6 “⏎” · probability 1.000 · not supported: a control says the same: wet"
    )


def test_heads_stick_and_the_cell_in_focus_is_never_behind_them(show: Callable):
    page = show(grid(layers=30, tokens=40), width=700)
    cell(page, 0, 0).focus()
    for key in ["PageDown", "End", "Home", "PageUp"]:
        page.keyboard.press(key)
    page.keyboard.press("Control+End")
    corner = page.locator("thead th").first.bounding_box()
    for key in ["ArrowLeft"] * 6 + ["ArrowUp"] * 18:
        page.keyboard.press(key)
        box = page.locator("td:focus").bounding_box()
        assert box["x"] >= corner["x"] + corner["width"] - 1
        assert box["y"] >= corner["y"] + corner["height"] - 1
    assert page.locator("thead th").first.bounding_box() == corner


def test_search_goes_from_answer_to_answer(show: Callable):
    made = LayerTokenGrid(layers=[1, 2], tokens=["a", "b", "c"])
    for layer, position, text in [
        (1, 0, "Water"),
        (1, 2, "blue water"),
        (2, 1, "red"),
        (2, 2, "wAter"),
    ]:
        made.put(layer, position, text)
    page = show(made)
    box = page.get_by_role("searchbox", name="Search the answers")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    box.fill("water")
    expect(page.get_by_role("status")).to_have_text("1 of 3 found")
    expect(page.locator("td.ao-match")).to_have_text(["Water", "blue water", "wAter"])
    expect(page.locator("td.ao-here")).to_have_text("Water")
    box.press("Enter")
    expect(page.locator("td.ao-here")).to_have_text("blue water")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("td.ao-here")).to_have_text("wAter")
    expect(page.locator(".ao-detail")).to_have_text("layer 2 · token 2 “c”: wAter")
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("status")).to_have_text("1 of 3 found")
    box.press("Shift+Enter")
    expect(page.get_by_role("status")).to_have_text("3 of 3 found")
    # Answers that arrive are searched too.
    stream(page, 1, 0, "more water")
    expect(page.get_by_role("status")).to_have_text("4 of 4 found")
    box.fill("nowhere")
    expect(page.get_by_role("status")).to_have_text("0 found")
    box.press("Escape")
    expect(page.locator("td.ao-match")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("")


def test_cells_stream_in_and_stay(show: Callable):
    page = show(LayerTokenGrid(layers=[4, 8], tokens=["a", "b"]))
    expect(page.locator(".ao-scale")).to_be_hidden()
    stream(page, 1, 0, "a boat", 0.9)
    expect(cell(page, 1, 0)).to_have_text("a boat")
    expect(cell(page, 1, 0)).to_have_attribute("data-support", "no")
    expect(page.locator(".ao-scale")).to_be_visible()
    expect(page.locator(".ao-key")).to_contain_text("a control without the activations")
    assert page.evaluate("aoModels[0].get('texts')") == [["", ""], ["a boat", ""]]
    assert page.evaluate("aoModels[0].get('values')")[1] == [0.9, None]
    # The kernel's answer to a view that was opened late.
    page.evaluate(
        "const m = aoModels[0]; m.set('texts', [['w', 'x'], ['y', 'z']]);"
        "m.set('values', [[0, 1], [0.5, null]])"
    )
    expect(page.locator("td")).to_have_text(["w", "x", "y", "z"])
    page.evaluate(
        "const m = aoModels[0]; m.set('layers', [4]); m.set('texts', [['only', 'one']]);"
        "m.set('values', [[0, 1]]); m.set('supported', [[true, null]])"
    )
    expect(page.locator("td")).to_have_text(["only", "one"])


def test_a_view_asks_for_what_it_missed(show: Callable):
    page = show(LayerTokenGrid(layers=[4], tokens=["a"]))
    sent = page.evaluate(
        """async () => {
          const source = JSON.parse(document.getElementById("ao-modules").textContent);
          const url = URL.createObjectURL(
            new Blob([source.LayerTokenGrid], { type: "text/javascript" }));
          const sent = [];
          aoModels[0].on("sent", (message) => sent.push(message));
          const el = document.createElement("div");
          (await import(url)).default.render({ model: aoModels[0], el });
          return sent;
        }"""
    )
    assert sent == [{"kind": "opened"}]


def test_colours_stand_out_from_their_text(show: Callable):
    made = LayerTokenGrid(layers=[0], tokens=["x"] * 101)
    for i in range(101):
        made.put(0, i, "text", i / 100)
    page = show(made)
    colours = page.evaluate(
        "[...document.querySelectorAll('td')].map((c) => [c.style.backgroundColor, c.style.color])"
    )

    def luminance(colour: str) -> float:
        parts = [int(p) / 255 for p in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    papers = [luminance(paper) for paper, _ in colours]
    assert papers == sorted(papers)
    for paper, ink in colours:
        light, dark = sorted([luminance(paper), luminance(ink)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_the_grid(show: Callable, scheme: str):
    made = grid()
    made.cell = [3, 9]
    page = show(made, LayerTokenGrid(label="Empty"), scheme=scheme)
    page.get_by_role("searchbox").first.fill("water")
    cell(page, 1, 1).focus()
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found] == []


def test_a_reader_of_screens_gets_a_grid(show: Callable):
    made = LayerTokenGrid(layers=[4, 8], tokens=["It", " is"])
    made.put(4, 0, "water", 0.5, supported=False)
    page = show(made)
    expect(page.get_by_role("grid")).to_match_aria_snapshot(
        """
        - grid "Answers by layer and token":
          - rowgroup:
            - row "layer 0 It 1 ·is":
              - columnheader "layer"
              - columnheader "0 It"
              - columnheader "1 ·is"
          - rowgroup:
            - 'row "4 not supported: water"':
              - rowheader "4"
              - 'gridcell "not supported: water"'
              - gridcell
            - row "8":
              - rowheader "8"
              - gridcell
              - gridcell
        """
    )


def test_a_large_grid_stays_fluid(show: Callable):
    page = show(grid(layers=36, tokens=128))
    expect(page.locator("td")).to_have_count(36 * 128)
    rebuilt, move, streamed = page.evaluate(
        """async () => {
          const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          const timed = async (work) => {
            await frame();
            const start = performance.now();
            await work();
            document.body.offsetHeight;
            return performance.now() - start;
          };
          const model = aoModels[0];
          const rebuilt = await timed(async () => model.set("layers", [...model.get("layers")]));
          document.querySelector("td").focus();
          const key = (key) => document.activeElement.dispatchEvent(
            new KeyboardEvent("keydown", { key, bubbles: true }));
          const move = await timed(async () => {
            for (let i = 0; i < 30; i += 1) key("ArrowRight");
          });
          const streamed = await timed(async () => {
            for (let i = 0; i < 128; i += 1) {
              model.emit("msg:custom", {
                kind: "cell", row: i % 36, column: i, text: "new", value: 0.5, supported: true });
            }
            await frame();
          });
          return [rebuilt, move / 30, streamed / 128];
        }"""
    )
    # The entry is written some time after the paint.
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(
        f"36 x 128: first paint {paint:.0f} ms, render and layout {rebuilt:.0f} ms, a move "
        f"{move:.1f} ms, a streamed cell {streamed:.2f} ms"
    )
    assert move < 100
