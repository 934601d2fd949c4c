"""Pages of widgets: whole, of one file, and not to be broken by what they hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.widgets import LayerTokenGrid, TokenSelect, page, save_page
from aotoolkit.widgets.base import front_end

HOSTILE = st.sampled_from(
    ["</script>", "<!--<script>", "]]>", "\u2028", "\\u003c", "${x}"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


class Scripts(HTMLParser):
    """The script elements of a page, as a browser would find them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


@given(st.lists(HOSTILE, min_size=1, max_size=6))
def test_no_text_ends_a_script(texts: list[str]):
    tokens = TokenSelect(tokens=texts, label=texts[0])
    grid = LayerTokenGrid(layers=[1], tokens=texts, texts=[texts])
    made = Scripts(page([tokens, grid], title=texts[-1]))
    assert len(made.scripts) == 4
    state = json.loads(made.scripts[0][1])
    assert (state["tokens"], state["label"]) == (texts, texts[0])
    assert json.loads(made.scripts[1][1])["texts"] == [texts]
    assert not re.search("[<>&]", "".join(text for _, text in made.scripts[:3]))


def test_a_page_asks_for_nothing():
    made = page([TokenSelect(tokens=["a"]), LayerTokenGrid(layers=[1], tokens=["a"])], title="x")
    assert not re.search(r"https?://|@import|url\(|<link|\ssrc=", made)
    assert made.count("<style>") == 1


def test_what_is_not_a_widget_is_shown_as_a_notebook_would():
    class Part:
        def _repr_html_(self) -> str:
            return "<p>an answer</p>"

    made = page([Part()], title="<x>")
    assert "<section><p>an answer</p></section>" in made
    assert "<title>&lt;x&gt;</title>" in made
    assert "<script" not in made


def test_the_same_widget_twice_has_one_module():
    made = Scripts(page([TokenSelect(tokens=["a"]), TokenSelect(tokens=["b"])], title="x"))
    assert list(json.loads(made.scripts[2][1])) == ["TokenSelect"]


def test_save_html_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokens = TokenSelect(tokens=["a"], label="A label")
    path = tokens.save_html(tmp_path / "new" / "page.html")
    assert "<title>A label</title>" in path.read_text(encoding="utf-8")
    tokens.save_html(path, title="Another")
    assert "<title>Another</title>" in path.read_text(encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokens.save_html(path, title="Third")
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_save_page_takes_several_parts(tmp_path: Path):
    path = save_page(tmp_path / "page.html", [TokenSelect(tokens=["a"])] * 2, title="Two")
    assert path.read_text(encoding="utf-8").count("data-widget=") >= 2


@pytest.mark.parametrize("name", ["token_select", "layer_token_grid"])
def test_a_front_end_is_one_module(name: str):
    source = front_end(name)
    assert re.findall(r"^(?:import|export) .*$", source, re.MULTILINE) == [
        "export default { render };"
    ]
