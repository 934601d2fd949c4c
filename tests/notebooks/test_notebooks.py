"""Every notebook and tutorial runs from start to end, and the committed one is its source's."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[2]


def load_build():
    path = ROOT / "notebooks" / "build.py"
    spec = importlib.util.spec_from_file_location("notebooks_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
SOURCES = build.sources()
# More than 30 seconds on two cores, by --durations.
SLOW = {
    "02_audit_a_finetuned_model",
    "05_compare_oracles_and_layers",
    "3_train_your_own_oracle",
    "4_is_it_reading_or_guessing",
    "5_latentqa_and_steering",
}
TUTORIALS = [source for source in SOURCES if source.parts[-3] == "tutorials"]


def committed(source: Path):
    return nbformat.read(build.written(source), as_version=4)


def hidden(notebook) -> list[str]:
    """The parts that a reader has to open: solutions of exercises."""
    return [
        part
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for part in re.findall(r"<details>.*?</details>", cell.source, re.DOTALL)
    ]


def solutions(notebook) -> list[str]:
    """The code of the solutions, in order."""
    return [
        code
        for part in hidden(notebook)
        for code in re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    ]


def files() -> dict[Path, float]:
    found = [path for folder in build.FOLDERS for path in folder.rglob("*")]
    return {p: p.stat().st_mtime for p in found if "__pycache__" not in p.parts}


def test_every_notebook_has_a_source():
    notebooks = {path for folder in build.FOLDERS for path in folder.glob("*.ipynb")}
    assert notebooks == {build.written(source) for source in SOURCES}
    assert {path.parent for path in notebooks} == set(build.FOLDERS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_committed_notebook_matches_its_source(source: Path):
    ours = [(c.id, c.cell_type, c.source) for c in committed(source).cells]
    theirs = [(c.id, c.cell_type, c.source) for c in build.from_source(source).cells]
    assert ours == theirs, f"run: python notebooks/build.py {source.stem}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_committed_notebook_can_be_read_without_a_kernel(source: Path):
    text = build.written(source).read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "widget-state" not in text
    assert build.WIDGET_VIEW not in text
    assert "<script" not in text
    notebook = committed(source)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [None] * len(code)
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2, "outputs are kept"


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_notebook_says_first_what_it_needs(source: Path):
    first = committed(source).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    for word in ("Shows", "Needs", "Takes"):
        assert f"**{word}**" in first.source


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda s: s.stem)
def test_tutorial_has_exercises_whose_solutions_are_hidden(source: Path):
    notebook = build.from_source(source)
    titles = re.findall(
        r"^#+ Exercise", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE
    )
    assert titles
    assert len(hidden(notebook)) == len(titles)
    assert solutions(notebook)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(source, id=source.stem, marks=[pytest.mark.slow] * (source.stem in SLOW))
        for source in SOURCES
    ],
)
def test_notebook_runs(source: Path, monkeypatch: pytest.MonkeyPatch):
    """And after it, where a reader may be too, the solutions of its exercises."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AOTOOLKIT_TUTORIAL_STEPS", "2")  # of training: enough to run every cell
    before = files()
    notebook = build.from_source(source)
    own = len(notebook.cells)
    notebook.cells += [new_code_cell(code) for code in solutions(notebook)]
    notebook = build.run(notebook, source.parents[1])
    speaking = [bool(cell.get("outputs")) for cell in notebook.cells[:own]]
    kept = [bool(cell.get("outputs")) for cell in committed(source).cells]
    assert speaking == kept, f"outputs of another time: python notebooks/build.py {source.stem}"
    assert files() == before, "a notebook leaves no files behind"
