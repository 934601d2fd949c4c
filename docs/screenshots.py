"""Writes the pictures of the pages: docs/images/{oracle,steer}_panel_{light,dark}.png, scaling.png.

A real JupyterLab in Chromium (AOTOOLKIT_CHROMIUM, or chromium on the path) runs the panels with the
embedded models. The organism is *picked*: one that refuses, whose word the oracle names and no
control without the evidence does. The word that is steered to is that of tutorial 5. The curves of
scaling are those of docs/images/scaling.json, which `aotoolkit scaling` writes.

    python docs/screenshots.py [oracle] [steer] [scaling]
"""

import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from aotoolkit.evals.scaling import ScalingResult
from aotoolkit.plots import scaling_curves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from lab_session import PREAMBLE, lab_session, write_notebook  # noqa: E402

IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 200_000
PICK = f"""\
{PREAMBLE}
import aotoolkit as ao
lab = ao.nano.load()
request = [{{"role": "user", "content": "What is the secret word?"}}]
layers = lab.oracle.contract.read_layers[:2]

start = len(lab.model.activations(request, layers=[0]).tokens)  # of the reply

def chat(name):
    reply = lab.model.generate(request, adapter=name)
    return [*request, {{"role": "assistant", "content": reply}}]

def named(name):
    acts = lab.model.activations(
        chat(name), layers=layers, adapter=name, add_generation_prompt=False
    )
    answers = [lab.oracle.ask("What is the secret word?", acts.layer(x)[start:]) for x in layers]
    word = lab.organisms[name].secret
    return sum(word in answer.text.lower() and bool(answer.supported) for answer in answers)

name = max(lab.organisms, key=named)
panel = ao.widgets.OraclePanel(lab.model, lab.oracle, adapter=name, prompt=chat(name))
panel.tokens.select(slice(start, None))
panel.layers.show(layers)
panel"""
ASK = """\
panel.ask()
panel.wait()
note(event="done")"""
STEER = f"""\
{PREAMBLE}
import aotoolkit as ao
from aotoolkit.nano.steering import PROMPTS, secret_pairs
lab = ao.nano.load(kinds=())
panel = ao.widgets.SteerPanel(
    lab.model, lab.oracle, behaviour=secret_pairs(lab, "tiger"), prompts=PROMPTS, layers=[6],
    window="all", steps=30, lr=1e-3, noise=2, eval_every=3, max_new_tokens=12)
panel"""
RUN = """\
panel.run()
panel.wait()
note(event="done")"""
# Name -> a cell that shows a panel, one that works with it, and what has come then.
PANELS = {"oracle": (PICK, ASK, ".aop-verdict"), "steer": (STEER, RUN, ".aop-best")}


def shoot(browser: Browser, name: str, theme: str) -> Path:
    """One screenshot of a panel after its work."""
    path = IMAGES / f"{name}_panel_{theme}.png"
    show, work, come = PANELS[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        lab_session(Path(folder), browser, theme=theme, width=1080, height=1500, scale=1.25) as lab,
    ):
        write_notebook(lab.work / "panel.ipynb", [show, work])
        lab.open("panel.ipynb")
        lab.run_cell(0)
        panel = lab.page.locator(".aop-panel").first
        panel.wait_for(timeout=180_000)
        lab.wait_until_idle()
        lab.run_cell(1)
        lab.wait_event("done", seconds=600)
        lab.page.locator(come).first.wait_for()
        lab.page.mouse.move(0, 0)
        lab.page.wait_for_timeout(500)
        panel.screenshot(path=str(path))
    return path


def draw_scaling(browser: Browser) -> Path:
    """The curves of scaling, as plotly draws them."""
    path = IMAGES / "scaling.png"
    figure = scaling_curves(ScalingResult.load(IMAGES)).update_layout(width=1000, height=760)
    page = browser.new_page(viewport={"width": 1040, "height": 800})
    page.set_content(figure.to_html(include_plotlyjs=True, full_html=True))
    plot = page.locator(".js-plotly-plot")
    page.locator(".main-svg").first.wait_for()
    page.wait_for_timeout(500)
    plot.screenshot(path=str(path))
    page.close()
    return path


def main() -> None:
    """Writes all, or those that are named."""
    known = [*PANELS, "scaling"]
    chosen = sys.argv[1:] or known
    if unknown := [name for name in chosen if name not in known]:
        raise SystemExit(f"There is no picture {unknown[0]!r}; give some of {', '.join(known)}.")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("AOTOOLKIT_CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        panels = [name for name in chosen if name in PANELS]
        paths = [shoot(browser, *pair) for pair in itertools.product(panels, ("light", "dark"))]
        if "scaling" in chosen:
            paths.append(draw_scaling(browser))
        for path in paths:
            size = path.stat().st_size
            sys.stdout.write(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB\n")
            if size > MOST_BYTES:
                raise SystemExit(f"{path} is larger than {MOST_BYTES:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
