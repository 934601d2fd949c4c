"""Runs notebooks/src/*.py and writes the notebooks beside that folder, outputs included.

A notebook is kept with what a reader without a kernel can use: its text and HTML outputs. Widget
state, execution counts and timings are left out, so that a rerun changes nothing but results.
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, write

FOLDER = Path(__file__).parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def sources() -> list[Path]:
    """The percent-format sources, in order."""
    return sorted((FOLDER / "src").glob("*.py"))


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


def run(notebook: NotebookNode) -> NotebookNode:
    """Executes a notebook in its folder and cleans what the run left behind.

    Raises:
        CellExecutionError: a cell failed.
    """
    metadata = dict(notebook.metadata)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [out for out in cell.outputs if WIDGET_VIEW not in out.get("data", {})]
            for out in cell.outputs:
                if "execution_count" in out:
                    out.execution_count = None
    return notebook


def main() -> None:
    """Writes every notebook, or those whose names are given."""
    wanted = set(sys.argv[1:])
    for source in sources():
        if not wanted or source.stem in wanted:
            print(f"{source.stem}: running")
            write(run(from_source(source)), FOLDER / f"{source.stem}.ipynb")


if __name__ == "__main__":
    main()
