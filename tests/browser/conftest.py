"""One Chromium for all tests of this folder; a test that fails leaves screenshots.

The tests open exported pages from disk: the same ES modules that a notebook runs, with a model of
their own instead of a kernel. A page that asks for anything else, or writes an error to the
console, fails its test.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aotoolkit.widgets import save_page

LOCAL = ("file:", "blob:", "data:")
HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SHOWN = pytest.StashKey[Any]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


class Chromium:
    """The browser, from the first test that asks for it to the last test of this folder.

    No fixture of the session: while Playwright runs, `asyncio.run` is refused in this thread, and
    the tests after these use it.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._context: Any = None
        self._page: Any = None
        self.faults: list[str] = []

    def context(self) -> Any:
        if self._context is None:
            path = os.environ.get("AOTOOLKIT_CHROMIUM") or shutil.which("chromium")
            if path is None:
                pytest.skip("no Chromium: put it on the path, or set AOTOOLKIT_CHROMIUM to one")
            from playwright.sync_api import sync_playwright

            playwright = self._open.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            self._open.callback(browser.close)
            self._context = browser.new_context()
        return self._context

    def page(self) -> Any:
        """One for all tests of exported pages: a new one takes longer than most tests do."""
        if self._page is None:
            page = self._page = self.context().new_page()
            page.set_default_timeout(10_000)
            page.on("pageerror", lambda error: self.faults.append(str(error)))
            page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
            page.on(
                "request", lambda r: None if r.url.startswith(LOCAL) else self.faults.append(r.url)
            )
        return self._page

    def close(self) -> None:
        self._context = self._page = None
        self._open.close()


CHROMIUM = Chromium()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or not nextitem.path.is_relative_to(HERE):
        CHROMIUM.close()


def pytest_sessionfinish() -> None:
    CHROMIUM.close()


@pytest.fixture
def chromium() -> Any:
    """A browser that is on the machine already."""
    return CHROMIUM.context()


@pytest.fixture
def show(chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable]:
    """Opens a page of widgets and other parts; `window.saves` holds what a kernel would get."""
    page = request.node.stash[SHOWN] = CHROMIUM.page()
    CHROMIUM.faults.clear()

    def open_page(*parts: Any, scheme: str = "light", width: int = 900, height: int = 800) -> Any:
        path = save_page(tmp_path / "page.html", parts, title="A page of widgets")
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        page.mouse.move(0, 0)  # not over what the last test left it at
        page.goto(path.as_uri())
        # A page without widgets has no script, and no models.
        page.wait_for_function("window.aoModels || !document.querySelector('[data-widget]')")
        page.evaluate(
            "window.saves = [];window.aoModels?.forEach((m) => m.on('saved', (s) => saves.push(s)))"
        )
        return page

    yield open_page
    for key in ("Shift", "Control"):
        page.keyboard.up(key)
    assert CHROMIUM.faults == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    page = item.stash.get(SHOWN, None)
    if report.when == "call" and report.failed and page is not None:
        folder = item.funcargs["tmp_path"]  # pyright: ignore[reportAttributeAccessIssue]
        page.screenshot(path=folder / "failed.png")
        report.sections.append(("Screenshot", f"failed.png in {folder}"))
    return report
