"""Runs the sources of notebooks and tutorials and writes them beside their src/, with outputs.

A notebook is kept with what a reader without a kernel can use: its text and HTML outputs. Widget
state, execution counts, stderr and the paths of the machine that ran it are left out, so that a
rerun changes nothing but results.
"""

import json
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, from_dict, write

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "notebooks", ROOT / "tutorials")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def sources() -> list[Path]:
    """The percent-format sources, in order."""
    return [source for folder in FOLDERS for source in sorted((folder / "src").glob("*.py"))]


def written(source: Path) -> Path:
    """Where the notebook of a source is."""
    return source.parents[1] / f"{source.stem}.ipynb"


def from_source(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs, the same each time."""
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Executes a notebook in a folder and cleans what the run left behind.

    Raises:
        CellExecutionError: a cell failed.
    """
    metadata = dict(notebook.metadata)
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_portable(output) for output in cell.outputs if _is_kept(output)]
    return notebook


def _is_kept(output: NotebookNode) -> bool:
    return output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})


def _portable(output: NotebookNode) -> NotebookNode:
    if "execution_count" in output:
        output.execution_count = None
    return from_dict(json.loads(json.dumps(output).replace(f"{ROOT}/", "")))  # pyright: ignore[reportReturnType]


def main() -> None:
    """Writes every notebook, or those whose names are given."""
    wanted = set(sys.argv[1:])
    for source in sources():
        if not wanted or source.stem in wanted:
            print(f"{source.stem}: running")
            write(run(from_source(source), source.parents[1]), written(source))


if __name__ == "__main__":
    main()
