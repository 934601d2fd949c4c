"""One journey through a real JupyterLab, with the embedded models.

Open, run, drag, pick layers, ask, watch it stream, stop, change adapter, ask while a cell runs,
fill the grid, export, and reopen the saved notebook untrusted.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from lab_session import PREAMBLE, LabSession, lab_session, write_notebook
from playwright.sync_api import expect

SETUP = f"""\
{PREAMBLE}
import aotoolkit as ao
from aotoolkit.widgets.answer_view import verdict_text
lab = ao.nano.load()
names = list(lab.organisms)
# So slow that a reader can see the answer arrive, and press Stop.
seconds = 0.03
lab.model.hf_model.register_forward_hook(lambda *_: time.sleep(seconds))
prompt = [{{"role": "user", "content": "Give me a hint."}},
          {{"role": "assistant", "content": "It is very cold </b>."}}]
panel = ao.widgets.OraclePanel(lab.model, lab.oracle, adapter=names[0], prompt=prompt)
panel.tokens.observe(lambda c: note(event="selection", value=c.new), "selection")
panel.layers.observe(lambda c: note(event="layers", value=c.new), "value")
def told(change):
    if panel.history and ("Answered" in change.new or "Stopped" in change.new):
        last = panel.history[-1]
        note(event="asked", stopped=last.stopped, adapter=last.request.adapter,
             layers=last.request.layers, positions=last.request.positions,
             verdicts=[verdict_text(a) for own in last.answers.values() for a in own],
             said=list(last.said.values()), read=[
                 [a.text, a.provenance["activations"]["adapter"]]
                 for own in last.answers.values() for a in own])
    if "Reading" in change.new:
        note(event="begun")
    if "cells in" in change.new:
        note(event="filled", texts=panel.grid.texts)
panel.status.observe(told, "value")
note(event="ready", names=names)"""
SHOW = "panel"
BUSY = """\
note(event="cell begun")
time.sleep(5)
note(event="cell ended")"""
WAIT = """\
seconds = 0.5
panel.ask()
panel.wait()"""
EXPORT = """\
seconds = 0
panel.ask()
panel.wait()
panel.save_html("panel.html")
note(event="saved", code=panel.code())
panel.snapshot()"""


def drag(lab: LabSession, first: int, last: int) -> float:
    """Drags over tokens; -> when the button was released."""
    boxes = []
    for place in (first, last):
        token = lab.page.locator(f'[data-i="{place}"]')
        token.scroll_into_view_if_needed()
        boxes.append(token.bounding_box())
    (x0, y0), (x1, y1) = (
        (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes
    )
    lab.page.mouse.move(x0, y0)
    lab.page.mouse.down()
    lab.page.mouse.move(x1, y1, steps=6)
    released = time.time()
    lab.page.mouse.up()
    return released


def button(lab: LabSession, name: str) -> Any:
    # The glyph of an icon is part of its name.
    return lab.page.get_by_role("button", name=re.compile(rf"(^|\W){name}$"))


def watch(lab: LabSession, count: int) -> list[str]:
    """Every state of the answer that a reader sees until the kernel says that it has ended."""
    seen: list[str] = []
    deadline = time.monotonic() + 60
    while len(lab.events("asked")) < count and time.monotonic() < deadline:
        answer = lab.page.locator(".aop-answer")
        text = answer.first.inner_text() if answer.count() else ""
        if text and (not seen or seen[-1] != text):
            seen.append(text)
        lab.page.wait_for_timeout(15)
    return seen


@pytest.mark.slow
def test_a_journey_through_jupyterlab(tmp_path: Path, chromium: Any):
    with lab_session(tmp_path, chromium.browser, height=1400) as session:
        write_notebook(session.work / "journey.ipynb", [SETUP, SHOW, BUSY, WAIT, EXPORT])
        journey(session)


def journey(session: LabSession) -> None:
    page = session.page
    page.set_default_timeout(10_000)
    session.open("journey.ipynb")
    session.run_cell(0)
    names = session.wait_event("ready", seconds=120)["names"]
    session.wait_until_idle()
    begun = time.perf_counter()
    session.run_cell(1)
    page.locator(".aop-panel").first.wait_for()
    print(f"first paint of the panel: {1000 * (time.perf_counter() - begun):.0f} ms")
    expect(page.get_by_text("Oracles confabulate.").first).to_be_visible()
    session.wait_until_idle()

    # Drag, and pick layers.
    released = drag(session, 13, 17)
    selected = session.wait_event("selection")
    assert selected["value"] == [13, 14, 15, 16, 17]
    print(f"drag to kernel: {1000 * (selected['time'] - released):.0f} ms")
    before = session.page.evaluate(CELLS)
    page.keyboard.press("b")  # would insert a cell if the widget let it through
    chip = page.get_by_role("button", name="6", exact=True)
    chip.click()
    layers = session.wait_event("layers")["value"]
    assert 6 in layers
    for layer in layers:
        if layer != 6:
            page.get_by_role("button", name=str(layer), exact=True).click()
    assert session.wait_event("layers", len(layers))["value"] == [6]
    assert session.page.evaluate(CELLS) == before

    # Ask, and watch it stream.
    question = page.get_by_label("Question")
    question.fill("What does this say, word for word?")
    question.press("Tab")
    button(session, "Ask").click()
    seen = watch(session, 1)
    asked = session.wait_event("asked")
    assert not asked["stopped"]
    assert (asked["layers"], asked["positions"]) == ([6], [13, 14, 15, 16, 17])
    ((text, adapter),) = asked["read"]
    assert adapter == names[0]
    expect(page.locator(".aop-answer").first).to_have_text(text)
    growing = [state for state in seen if text.startswith(state)]
    assert len(growing) >= 2, f"the answer did not arrive in pieces: {seen}"
    expect(page.locator(".aop-verdict").first).to_have_text(asked["verdicts"][0])
    expect(page.locator(".aop-card table").first).to_contain_text("zero vectors")

    found = Axe().run(page, context=".aop-panel")
    assert found.violations_count == 0, found.generate_report()

    # Stop in the middle.
    button(session, "Ask").click()
    page.wait_for_function("document.querySelector('.aop-waiting')?.innerText.trim()")
    button(session, "Stop").click()
    stopped = session.wait_event("asked", 2)
    assert stopped["stopped"]
    assert stopped["read"] == []

    # Another adapter.
    page.get_by_label("Model").select_option(names[1])
    button(session, "Ask").click()
    other = session.wait_event("asked", 3)
    assert other["adapter"] == names[1]
    assert [adapter for _, adapter in other["read"]] == [names[1]]
    expect(page.locator(".aop-card-head").first).to_contain_text(f"reads {names[1]}")

    # Ask while a cell runs.
    session.run_cell(2)
    session.wait_event("cell begun")
    button(session, "Ask").click()
    during = session.wait_event("asked", 4)
    assert not during["stopped"]
    assert during["read"] == other["read"]
    begun = session.wait_event("begun", 4)
    assert begun["time"] < session.wait_event("cell ended")["time"], (
        "the answer waited for the cell"
    )
    session.wait_until_idle()
    assert len(session.events("asked")) == 4

    # Interrupt the kernel in mid-answer.
    session.run_cell(3)
    page.wait_for_function("document.querySelector('.aop-waiting')?.innerText.trim()")
    page.evaluate("window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    assert session.wait_event("asked", 5)["stopped"]
    expect(page.locator(".jp-CodeCell").nth(3)).to_contain_text("KeyboardInterrupt")

    # Fill the grid.
    page.get_by_role("tab", name="Layer x token grid").click()
    button(session, "Fill the grid").click()
    texts = session.wait_event("filled")["texts"]
    assert [len(row) for row in texts] == [5]
    cell = page.locator('.aop-panel td[data-r="0"][data-c="2"]')
    expect(cell).to_contain_text(texts[0][2].split()[0])
    cell.click()
    expect(page.locator(".aop-card-head", has_text="1 token (15)")).to_be_visible()

    # Export, save, and reopen.
    session.run_cell(4)
    session.wait_event("saved")
    page.locator(".jp-OutputArea .aop-page").first.wait_for()
    page.keyboard.press("Control+s")
    page.wait_for_function(f"!({NOTEBOOK}.context.model.dirty)", timeout=30_000)
    saved = nbformat.read(session.work / "journey.ipynb", as_version=4)
    check_page(session, text=during["read"][0][0])
    saved.cells[2].source += "\n# not what was signed, so not trusted"
    for cell in saved.cells:
        cell.metadata.pop("trusted", None)
    nbformat.write(saved, session.work / "downloaded.ipynb")
    session.open("downloaded.ipynb")
    cells = page.locator(".jp-CodeCell")
    expect(cells.nth(4)).to_contain_text(during["read"][0][0])
    expect(cells.nth(1)).to_contain_text("Oracles confabulate.")
    assert page.locator(".aop-panel").count() == 0
    assert page.get_by_text("Error displaying widget").count() == 0
    assert {host for host in session.hosts if host} == {"127.0.0.1"}
    assert session.errors == []


NOTEBOOK = "window.jupyterapp.shell.currentWidget"
CELLS = f"{NOTEBOOK}.content.model.cells.length"


def check_page(session: LabSession, *, text: str) -> None:
    """The exported page works from disk, without the kernel."""
    page = session.page.context.new_page()
    page.goto((session.work / "panel.html").as_uri())
    page.wait_for_function("window.aoModels")
    expect(page.get_by_text(text).first).to_be_visible()
    page.locator('[data-i="2"]').click()
    assert page.evaluate("aoModels[0].get('selection')") == [2]
    expect(page.get_by_text("model.activations(").first).to_be_visible()
    assert "</b>." in json.loads(page.evaluate("JSON.stringify(document.body.innerText)"))
    page.close()
