"""The site is built offline, its links lead somewhere, and it loads nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

for needed in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
    pytest.importorskip(needed, reason="the site needs the extra docs")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
API = ("data", "evals", "evals.baselines", "evals.suites", "nano", "oracle", "tracing", "training")


class Page(HTMLParser):
    """What a page can be linked at, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("a", "area") and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values.get("href", ""))
        elif "src" in values:
            self.loaded.append(values["src"])


def broken_links(site: Path) -> Iterator[str]:
    """Links and loaded files of a site that are not in it."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            # 404.html is shown at any address, so its links begin at the root.
            start = site if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.name}: {link}"
            elif fragment and target in pages and fragment not in pages[target].ids:
                yield f"{path.name}: {link} (no such place in {target.name})"


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    for path in site.rglob("*.html"):
        for source in Page(path.read_text("utf-8")).loaded:
            if urlsplit(source).netloc:
                yield f"{path.name}: {source}"
    for path in site.rglob("*.css"):
        for source in re.findall(r"(?:@import|url\()\s*[\"']?(https?:[^\"')]+)", path.read_text()):
            yield f"{path.name}: {source}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_of_the_site_lead_somewhere(site: Path):
    assert len(list(site.rglob("*.html"))) > 20
    assert not list(broken_links(site))


def test_the_site_loads_nothing_from_elsewhere(site: Path):
    assert not list(loaded_from_elsewhere(site))


def test_the_site_holds_no_path_of_the_machine_that_built_it(site: Path):
    assert not [p.name for p in site.rglob("*.html") if str(ROOT) in p.read_text("utf-8")]


@pytest.mark.parametrize("part", API)
def test_every_public_name_has_its_entry_in_the_api(site: Path, part: str):
    ids = Page((site / "api" / f"{part}.html").read_text("utf-8")).ids
    names = [n for n in importlib.import_module(f"aotoolkit.{part}").__all__ if not n.isupper()]
    assert names
    # A name that stands in several parts has its entry at the first.
    assert not [name for name in names if not any(i.endswith(f".{name}") for i in ids)]


def test_every_notebook_is_a_page_with_its_figures_and_solutions(site: Path):
    for folder in ("notebooks", "tutorials"):
        for path in (ROOT / folder).glob("*.ipynb"):
            page = (site / folder / f"{path.stem}.html").read_text("utf-8")
            cells = nbformat.read(path, as_version=4).cells
            data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
            figures = sum("application/vnd.plotly.v1+json" in one for one in data)
            shown = [cell.source for cell in cells if cell.cell_type == "markdown"]
            shown += [str(one.get("text/html", "")) for one in data]
            assert page.count("Plotly.newPlot(") == figures
            assert page.count("<details") == sum(text.count("<details>") for text in shown)
            assert "$$" not in page, "a formula was left as TeX"


def test_broken_links_and_foreign_files_are_found(tmp_path: Path):
    """The tests above can fail."""
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="#here">4</a><h2 id="here"></h2><img src="d.png">'
        '<a href="https://elsewhere">5</a><script src="https://cdn/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p>')
    (tmp_path / "s.css").write_text("@import url(https://fonts/x.css);")
    assert [found.split()[1] for found in broken_links(tmp_path)] == [
        "b.html#gone",
        "c.html",
        "d.png",
    ]
    assert len(list(loaded_from_elsewhere(tmp_path))) == 2


def headings(page: Path) -> set[str]:
    """The places that GitHub gives a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_the_pages_lead_somewhere_in_the_repository(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, place = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if place:
            assert place in headings(target), link


def test_the_quick_start_runs(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(
        r"```python\n(.+?)```", (ROOT / "docs" / "index.md").read_text("utf-8"), re.DOTALL
    )
    (offline,) = [block for block in blocks if "nano.load()" in block]
    exec(compile(offline, "index.md", "exec"), {})
    assert "the truth:" in capsys.readouterr().out
