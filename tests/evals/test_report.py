"""The report holds what was measured, whatever texts there are, and needs nothing but itself."""

import builtins
import itertools
import json
import re
import time
from html.parser import HTMLParser

import eval_results as made
import pytest

from aotoolkit.evals.report import REPORT, write_report

VOID_TAGS = {"meta", "br", "img", "link", "input", "hr"}
NASTY = (
    "</script><img src=x onerror=alert(1)> \"two\" 'one' & \N{GRINNING FACE} "
    "\u0645\u0631\u062d\u0628\u0627 \u202e"  # right to left, and an override of direction
)


class Page(HTMLParser):
    """Elements, text by element, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)
            self.said.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
            for tag in set(self.open):
                self.said[tag][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def page(result, folder, **options):
    path = write_report(result, folder, **options)
    assert path == folder / REPORT
    assert list(folder.iterdir()) == [path]
    return Page(path.read_text(encoding="utf-8"))


def without_plotly(monkeypatch):
    imported = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


@pytest.fixture
def plain(monkeypatch):
    """Without Plotly's script, of 5 MB."""
    without_plotly(monkeypatch)


def test_a_report_is_an_accessible_page(tmp_path):
    pytest.importorskip("plotly", reason="the extra `notebook` is not installed")
    rows = made.arms("taboo") + made.arms("people/seen") + made.arms("people/unseen")
    found = page(
        made.result(rows, [made.record()], notes=("one note",)), tmp_path, model="some/model"
    )
    assert found.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in found.all("a")]
    assert links[0] == "#content"
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert found.all("th")
    assert all(attrs["scope"] in ("row", "col") for attrs in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    plots = [attrs for attrs in found.all("div") if attrs.get("class") == "plot"]
    assert len(plots) == len(found.all("figure")) == 5  # three tasks, a ladder, an ablation
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    drawn = [a["data-figure"] for a in found.all("script") if "data-figure" in a]
    assert drawn == [attrs["id"] for attrs in plots]
    for said in ("Evaluation: tiny", "some/model", "1 min 1 s", "one note"):
        assert said in found.text


def test_a_report_needs_no_network_and_has_plotly_once(tmp_path):
    pytest.importorskip("plotly", reason="the extra `notebook` is not installed")
    text = write_report(made.result(made.arms("taboo")), tmp_path).read_text(encoding="utf-8")
    found = Page(text)
    assert not [tag for tag, attrs in found.elements if "src" in attrs or tag in ("link", "img")]
    assert not [a for a in found.all("a") if not str(a["href"]).startswith("#")]
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for a in found.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none';")
    scripts = [attrs for attrs in found.all("script") if not attrs]
    assert len(scripts) == policy.count("sha256-") == 2
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert text.count("plotly.js v") == 1


def test_text_of_models_and_users_is_escaped(tmp_path):
    pytest.importorskip("plotly", reason="the extra `notebook` is not installed")
    rows = [
        made.row(NASTY, NASTY, "oracle", 0.5, metric=NASTY, unit=NASTY),
        made.row(NASTY, f"other {NASTY}", "oracle", 0.5, metric=NASTY, unit=NASTY),
        made.row(NASTY, "zero", "control", 0.1, metric=NASTY, unit=NASTY),
    ]
    answer = made.record(
        arm=NASTY,
        task=NASTY,
        item=NASTY,
        unit=NASTY,
        question=NASTY,
        answers=(NASTY,),
        choices=(NASTY, "b"),
        tokens=(NASTY, NASTY, "\ud83d"),
        read=(1,),
        text=NASTY + "\udc00",
        scores={NASTY: -1.0, "b": -2.0},
        details={"confidence": {"kind": NASTY, "value": 0.5}, "rung": NASTY},
    )
    higher = made.record(arm=NASTY, task=NASTY, details={"rung": "b"})
    found = page(made.result(rows, [answer, higher], notes=(NASTY,)), tmp_path, model=NASTY)
    assert not found.all("img")
    assert not [attrs for _, attrs in found.elements if "onerror" in attrs]
    # Item, unit, question, accepted answer, answer, choice, and each token, as they are.
    assert max(article.count(NASTY) for article in found.said["article"]) >= 8
    assert "\ufffd" in found.text
    # In figures Plotly takes text for HTML, and JSON must not end its script.
    text = (tmp_path / REPORT).read_text(encoding="utf-8")
    figures = re.findall(r'data-figure="[^"]+">(.*?)</script>', text)
    assert len(figures) >= 3
    for figure in figures:
        assert "<" not in figure
        assert "<img" not in json.dumps(json.loads(figure), ensure_ascii=False)


@pytest.mark.usefixtures("plain")
def test_arms_stand_in_order_with_intervals_n_and_differences(tmp_path):
    further = made.row("taboo", "full", "oracle", 0.6, metric="token F1", chance=float("nan"))
    rows = [*made.arms("taboo"), further]
    text = (write_report(made.result(rows), tmp_path)).read_text(encoding="utf-8")
    tasks = text.split('id="task-1"')[1].split("<details")[0]
    assert re.findall(r"<td>(oracle|control|baseline|skyline)</td>", tasks) == [
        "oracle",
        "oracle",
        "control",
        "baseline",
        "skyline",
    ]
    assert "0.75 [0.65, 0.85]" in tasks
    assert "0.50 [0.40, 0.60]</td><td class=number>0.02" in tasks  # the paired difference
    assert "Chance: 0.25." in tasks
    others = text.split("Other scores of the same answers: token F1")[1].split("</details>")[0]
    assert "0.60 [0.50, 0.70]" in others
    assert "nan" not in others
    assert "Above its controls" in text
    assert "Plotly was not installed" in text


@pytest.mark.usefixtures("plain")
def test_a_void_task_is_marked_and_says_why(tmp_path):
    rows = [
        *made.arms("taboo"),
        made.row("trait", "full", "oracle", 0.75, void=True),
        made.row("trait", "probe", "skyline", 0.3, void=True),
    ]
    found = page(made.result(rows), tmp_path)
    assert "2, 1 of them void" in found.text
    assert "trait (void)" in found.said["h3"]
    assert any("0.30 [0.20, 0.40]" in said and "chance (0.25)" in said for said in found.said["p"])
    grey = [attrs for attrs in found.all("tr") if attrs.get("class") == "isvoid"]
    assert len(grey) == 3  # in the overview and the task's own rows


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "rows",
    [[], [made.row("taboo", "full", "oracle", 0.5)], [made.row("taboo", "zero", "control", 0.2)]],
    ids=["nothing", "no baseline", "no oracle"],
)
def test_what_is_absent_is_said(tmp_path, rows):
    found = page(made.result(rows), tmp_path)
    for sentence in ("has no ladder", "nothing to set side by side", "carries a confidence"):
        assert sentence in found.text
    assert "No item was answered by an oracle." in found.text


@pytest.mark.usefixtures("plain")
def test_items_show_every_answer_and_what_was_read(tmp_path):
    records = [
        made.record(0),
        made.record(1, text="The word is salt.", correct=0.0, scores={"lamp": -9.0, "salt": -0.1}),
        made.record(2, correct=0.0, scores={"lamp": -1.0, "salt": -0.5}, text="seed zero", seed=0),
        made.record(2, correct=0.0, scores={"lamp": -1.0, "salt": -0.5}, text="seed one", seed=1),
        *(made.record(number, tokens=("x",) * 200, read=(100,)) for number in range(3, 9)),
        *(made.record(n, arm="base", kind="control", text=f"base says {n}") for n in range(9)),
    ]
    text = write_report(made.result(made.arms("taboo"), records), tmp_path).read_text()
    articles = text.split("<article>")[1:]
    assert len(articles) == 6
    named = [re.findall(r"<h5>Item item (\d)</h5>", article)[0] for article in articles]
    assert named[:2] == ["1", "2"]  # of wrong ones the surest first
    assert "The word is salt." in articles[0]
    assert "base says 1" in articles[0]
    assert "seed zero" in articles[1]
    assert "seed one" in articles[1]
    assert 'title="read: positions 4 to 5"' in articles[0]
    assert "<span> hint</span><span>.</span>" in articles[0]
    assert "Give me a<mark" in articles[0]
    assert ".</span><span class=heard>]</span></mark>↵\n" in articles[0]
    assert "[…76 tokens…]" in articles[3]  # far from what was read


@pytest.mark.usefixtures("plain")
def test_one_item_is_shown_once(tmp_path):
    found = page(made.result(made.arms("taboo"), [made.record()]), tmp_path)
    assert len(found.all("article")) == 1


@pytest.mark.usefixtures("plain")
def test_confidence_is_set_against_being_right(tmp_path):
    records = [
        made.record(
            number,
            text=("The salt.", "The lamp.")[number % 2],
            correct=float(number % 2),
            details={"confidence": {"kind": "mode_frequency", "value": 0.5, "calibrated": True}},
        )
        for number in range(8)
    ]
    records.append(made.record(8, correct=0.5, task="gist", details={"confidence": 0.5}))
    records.append(made.record(9, details={"confidence": 7.0}))
    found = page(made.result(made.arms("taboo"), records), tmp_path)
    assert "mode frequency, calibrated" in found.text
    assert "Left out: 1 confidences" in found.text
    assert "answers of gist that are" in found.text
    # ECE, Brier (with no figure for calibration on other units), AUROC, answers, n and unit.
    assert "0.000—0.250—0.5084organism" in "".join(found.said["tbody"])


def test_two_thousand_records_take_no_time(tmp_path):
    records = [
        made.record(
            number // 2,
            arm=arm,
            kind=kind,
            tokens=("word ",) * 400,
            details={"rung": f"L{number % 3}", "confidence": (number % 10) / 10},
            correct=float(number % 3 == 0),
        )
        for number in range(1_000)
        for arm, kind in (("full", "oracle"), ("base", "control"))
    ]
    result = made.result(made.arms("taboo"), records)
    write_report(result, tmp_path)  # imports
    before = time.process_time()
    path = write_report(result, tmp_path)
    assert time.process_time() - before < 5
    assert path.stat().st_size < 8e6
