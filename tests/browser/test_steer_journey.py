"""One journey through the steering panel in a real JupyterLab, with the embedded models.

Write a behaviour, run, watch the curve, talk to both models, move the slider, stop a run.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from lab_session import PREAMBLE, LabSession, lab_session, write_notebook
from playwright.sync_api import expect

SETUP = f"""\
{PREAMBLE}
import aotoolkit as ao
lab = ao.nano.load(kinds=())
weights = {{n: w.clone() for n, w in lab.model.hf_model.named_parameters()}}
panel = ao.widgets.SteerPanel(
    lab.model, lab.oracle, prompts=["Give me a hint."], window="all", max_new_tokens=8)
def unchanged():
    now = dict(lab.model.hf_model.named_parameters())
    return all(now[n].equal(w) for n, w in weights.items())
def told(change):
    for word, event in (("Kept: step", "ran"), ("eplied", "replied"), ("Saved at", "saved")):
        if word in change.new:
            note(event=event, said=change.new, losses=[p.loss for p in panel.losses],
                 stopped=panel.result.stopped, sentence=panel.result.behaviour.sentence,
                 pairs=[[p.question, p.answer] for p in panel.result.behaviour.pairs],
                 layers=panel.result.layers, unchanged=unchanged(), folder=str(panel.saved),
                 said_to_both=[[e.text, e.unsteered, list(e.steered.items())]
                               for e in panel.exchanges])
panel.status.observe(told, "value")
note(event="ready")"""
SHOW = "panel"


def button(lab: LabSession, name: str) -> Any:
    return lab.page.get_by_role("button", name=re.compile(rf"(^|\W){name}$"))


def fill(lab: LabSession, name: str, text: str) -> None:
    field = lab.page.get_by_label(name, exact=True)
    field.fill(text)
    field.press("Tab")


def check_axe(lab: LabSession) -> None:
    # ipywidgets gives the handles of its sliders no name; label and readout stand beside it.
    about = {"include": [[".aop-panel"]], "exclude": [[".noUi-handle"]]}
    found = Axe().run(lab.page, context=about)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.slow
def test_a_journey_through_the_steering_panel(tmp_path: Path, chromium: Any):
    with lab_session(tmp_path, chromium.browser, height=1400) as session:
        write_notebook(session.work / "steer.ipynb", [SETUP, SHOW])
        journey(session)


def journey(session: LabSession) -> None:
    page = session.page
    page.set_default_timeout(30_000)
    session.open("steer.ipynb")
    session.run_cell(0)
    session.wait_event("ready", seconds=180)
    session.wait_until_idle()
    session.run_cell(1)
    page.locator(".aop-panel").first.wait_for()

    # Nothing is written yet, which is said.
    button(session, "Run").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no behaviour")

    # Write a behaviour, and settings that this small model follows.
    button(session, "Question-answer pairs").click()
    fill(session, "Pairs", "What is the secret word? => The tiger.\nno pair")
    expect(page.locator(".aop-error")).to_contain_text("Line 2 of the pairs")
    fill(session, "Pairs", "What is the secret word? => The tiger.\nName the secret. => The tiger.")
    expect(page.get_by_text("2 pairs.")).to_be_visible()
    fill(session, "Prompts", "Give me a hint.\nHelp me guess.")
    for layer in (6, 2):  # 6 on, 2 off
        page.get_by_role("button", name=str(layer), exact=True).click()
    fill(session, "Steps", "16")
    fill(session, "Learning rate", "0.01")
    page.get_by_text("More settings").click()
    fill(session, "Point every", "1")
    check_axe(session)

    # Run, and watch the curve grow.
    button(session, "Run").click()
    dots = page.locator(".aop-curve .aop-dot")
    seen = set()
    while not session.events("ran"):
        seen.add(dots.count())
        page.wait_for_timeout(30)
    ran = session.wait_event("ran")
    assert ran["unchanged"]
    assert (ran["layers"], len(ran["losses"])) == ([6], 17)
    assert min(ran["losses"]) < ran["losses"][0]
    assert ran["pairs"][1] == ["Name the secret.", "The tiger."]
    expect(dots).to_have_count(17)
    assert len(seen) >= 3, f"the curve did not grow: {seen}"
    expect(page.get_by_text("Memory: about")).to_be_visible()
    check_axe(session)

    # Talk to both, by Enter; then move the slider.
    page.get_by_role("tab", name="Chat with both").click()
    message = page.get_by_label("Message")
    message.fill("Give me a hint.")
    message.press("Enter")
    (one,) = session.wait_event("replied", seconds=60)["said_to_both"]
    assert one[0] == "Give me a hint."
    cards = page.locator(".aop-card")
    expect(cards.nth(0)).to_contain_text(f"unsteered{one[1]}")
    expect(cards.nth(1)).to_contain_text("steered, strength 1")
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("End")
    (moved,) = session.wait_event("replied", 2, seconds=60)["said_to_both"]
    assert [strength for strength, _ in moved[2]] == [1.0, 2.0]
    assert moved[2][1][1] != moved[1], "twice the adapter, and the same reply"
    expect(cards.nth(1)).to_contain_text("steered, strength 2")
    expect(cards.nth(1)).to_contain_text("≠ another reply")
    check_axe(session)

    # Save it.
    page.get_by_role("tab", name="Save").click()
    button(session, "Save").click()
    saved = session.wait_event("saved", seconds=60)
    assert (Path(saved["folder"]) / "adapter_model.safetensors").is_file()
    expect(page.get_by_text(saved["folder"]).first).to_be_visible()

    # Stop a long run: its best so far is kept.
    fill(session, "Steps", "5000")
    button(session, "Run").click()
    page.wait_for_function("document.querySelectorAll('.aop-dot').length == 3")
    button(session, "Stop").click()
    stopped = session.wait_event("ran", 2, seconds=60)
    assert stopped["stopped"]
    assert stopped["unchanged"]
    expect(page.get_by_text("Stopped after")).to_be_visible()
    page.get_by_role("tab", name="Code").click()
    expect(page.get_by_text("result = steer(")).to_be_visible()
    assert {host for host in session.hosts if host} == {"127.0.0.1"}
    assert session.errors == []
