"""The page that a panel writes, in a real browser: complete, usable, and accessible."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from aotoolkit.widgets import AuditPanel, OraclePanel, SteerPanel
from aotoolkit.widgets.base import HTML
from aotoolkit.widgets.panel import Panel, styled

HOSTILE = "</script><script>document.title = 'broken'</script><b>bold</b>"


@pytest.fixture(scope="module")
def asked(lab: Any) -> OraclePanel:
    panel = OraclePanel(
        lab.model,
        lab.oracle,
        prompt=[{"role": "user", "content": f"Hi. {HOSTILE}"}],
        adapter=next(iter(lab.organisms)),
        max_positions=12,
        max_new_tokens=8,
    )
    panel.layers.show([2, 4])
    for job in (panel.ask, panel.fill_grid):
        job()
        assert panel.wait(120)
        assert panel.error == ""
    return panel


@pytest.fixture(scope="module")
def audited(lab: Any) -> AuditPanel:
    panel = AuditPanel(
        lab.model,
        [next(iter(lab.organisms))],
        oracle=lab.oracle,
        prompts=["Hello.", HOSTILE],
        questions=["What is the secret word?"],
        max_new_tokens=8,
    )
    for job in (panel.compare, panel.ask, panel.run_battery):
        job()
        assert panel.wait(120)
        assert panel.error == ""
    panel.tabs.selected_index = 0
    panel.pin(HOSTILE)
    return panel


@pytest.fixture(scope="module")
def steered(lab: Any) -> Iterator[SteerPanel]:
    panel = SteerPanel(
        lab.model,
        lab.oracle,
        behaviour=[("What is the secret word?", HOSTILE)],
        prompts=["Hello.", HOSTILE],
        layers=[2],
        steps=2,
        eval_every=1,
        max_new_tokens=8,
    )
    for job in (panel.run, lambda: panel.chat(HOSTILE)):
        job()
        assert panel.wait(120)
        assert panel.error == ""
    yield panel
    assert panel.result is not None
    panel.result.remove()


def parts(panel: Panel) -> list[Any]:
    return [HTML(styled(p)) if isinstance(p, str) else p for p in panel.page_parts()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["asked", "audited", "steered"])
def test_axe_finds_nothing(show: Callable, request: Any, name: str, scheme: str):
    page = show(*parts(request.getfixturevalue(name)), scheme=scheme, width=1100)
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


def test_a_page_is_complete_and_can_be_used(show: Callable, asked: OraclePanel):
    page = show(*parts(asked))
    for answer in asked.history[-1].answers["oracle"]:
        expect(page.locator(".aop-answer", has_text=answer.text).first).to_be_visible()
    expect(page.locator(".aop-answer b")).to_have_count(0)
    assert page.title() == "A page of widgets"
    assert page.evaluate("aoModels[0].get('selection')") == list(asked.tokens.selection)
    page.locator('[data-i="1"]').click()
    assert page.evaluate("saves.at(-1)") == {"selection": [1]}
    grid = page.locator('td[data-r="0"][data-c="0"]')
    grid.click()
    assert page.evaluate("saves.at(-1).cell") == [2, asked.grid.positions[0]]


def test_a_report_is_complete(show: Callable, audited: AuditPanel):
    page = show(*parts(audited))
    for heading in ("Findings", "Outputs", "Where they part", "Battery", "Code"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(page.get_by_text("<b>bold</b>").first).to_be_visible()
    assert page.title() == "A page of widgets"


def test_a_steered_model_is_shown_beside_the_other(show: Callable, steered: SteerPanel):
    page = show(*parts(steered))
    for heading in ("Behaviour", "Loss", "Before and after", "Chat with both", "Code"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="Loss curve")).to_be_visible()
    expect(page.locator(".aop-dot")).to_have_count(3)
    page.get_by_text("The numbers").click()
    expect(page.get_by_role("cell", name=f"{steered.losses[0].loss:.4f}").first).to_be_visible()
    expect(page.get_by_text("<b>bold</b>").first).to_be_visible()
    assert page.title() == "A page of widgets"


def test_a_page_fits_a_narrow_window(show: Callable, asked: OraclePanel):
    page = show(*parts(asked), width=420)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{wide} pixels stick out"
