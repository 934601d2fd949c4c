"""A real JupyterLab in a real browser, which can touch nothing outside one folder.

What the kernel did is asserted from a file that the kernel process wrote, never from what the page
shows alone.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
# Shift+Enter before the kernel's connection is up is dropped silently, and the indicator in the
# page says "idle" too early. So the application is asked, which `expose_app_in_browser` allows.
_KERNEL_IDLE = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === "connected" && kernel?.status === "idle";
}"""
_EVENTS = "kernel.jsonl"
# The first lines of a notebook: `note(event=..., ...)` is what the test waits for.
PREAMBLE = f"""\
import json, time
def note(**entry):
    with open({_EVENTS!r}, "a") as file:
        file.write(json.dumps({{"time": time.time(), **entry}}) + "\\n")
"""


@dataclass
class LabSession:
    """An open notebook.

    Attributes:
        page: The browser's page.
        work: The folder of the notebook.
        url: Of the server.
        token: Of the server.
        hosts: Every host that the page asked for something.
        errors: What the page's console called an error.
    """

    page: Page
    work: Path
    url: str
    token: str
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def open(self, name: str, *, wait_for_kernel: bool = True) -> None:
        """Opens a notebook of the work folder."""
        self.page.goto(f"{self.url}/doc/tree/{name}?token={self.token}")
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        if wait_for_kernel:
            self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Waits until the kernel is connected and does nothing."""
        self.page.wait_for_function(_KERNEL_IDLE, timeout=120_000)

    def run_cell(self, number: int) -> None:
        """Runs one code cell, without waiting for it."""
        self.page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(number).click()
        self.page.keyboard.press("Shift+Enter")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What the kernel process wrote so far."""
        path = self.work / _EVENTS
        if not path.exists():
            return []
        # The last line may be half written.
        lines = path.read_text().rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in lines]
        return [event for event in found if name in (None, event["event"])]

    def wait_event(self, name: str, count: int = 1, *, seconds: float = 30) -> dict[str, Any]:
        """The `count`-th event of that name that the kernel wrote."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.events(name)
            if len(found) >= count:
                return found[count - 1]
            self.page.wait_for_timeout(20)
        raise AssertionError(
            f"the kernel wrote no {name!r} event no. {count} in {seconds} s: {self.events()[-8:]}"
        )


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """A notebook of code cells."""
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
        ),
        path,
    )


@contextlib.contextmanager
def lab_session(
    root: Path,
    browser: Browser,
    *,
    theme: str = "light",
    width: int = 1250,
    height: int = 1000,
    scale: float = 1,
) -> Iterator[LabSession]:
    """JupyterLab on `root / "work"`, and a page of the browser on it.

    Whatever goes wrong inside is raised with a screenshot and the server's log in its message.
    """
    work = root / "work"
    work.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_server(root, token, theme))
        context = browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
            color_scheme="dark" if theme == "dark" else "light",
        )
        stack.callback(context.close)
        session = LabSession(context.new_page(), work, url, token)
        session.page.on(
            "request", lambda request: session.hosts.add(urlsplit(request.url).hostname or "")
        )
        session.page.on("pageerror", lambda error: session.errors.append(str(error)))
        session.page.on(
            "console",
            lambda message: message.type == "error" and session.errors.append(message.text),
        )
        try:
            yield session
        except Exception as error:
            failure = root / "failure.png"
            session.page.screenshot(path=str(failure))
            log = (root / "server.log").read_text()[-3000:]
            raise AssertionError(
                f"{error}\nscreenshot: {failure}\nconsole: {session.errors[-5:]}\nserver:\n{log}"
            ) from error


@contextlib.contextmanager
def _server(root: Path, token: str, theme: str) -> Iterator[str]:
    settings = root / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    values = {
        "themes": {"theme": f"JupyterLab {theme.capitalize()}"},
        # Else a question covers the page.
        "notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, value in values.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(value))
    environment = {
        **os.environ,
        **{
            f"JUPYTER_{name}_DIR": str(root / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        },
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(root / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
                *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root / 'work'}"),
                *("--LabApp.news_url=null", "--LabApp.expose_app_in_browser=True"),
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _url(server, root)
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _url(server: subprocess.Popen[bytes], root: Path) -> str:
    written = root / "runtime" / f"jpserver-{server.pid}.json"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        if written.exists() and written.read_text().strip():
            return json.loads(written.read_text())["url"].rstrip("/")
        time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start:\n{(root / 'server.log').read_text()}")
