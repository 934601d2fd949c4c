"""What the site has beyond docs/*.md: notebooks, tutorials and the API as pages.

They are made when the site is built, so that no copy of them has to be kept in step. Formulas
become MathML and figures are drawn by the copy of plotly.js that the Python package brings, since
the site loads nothing from elsewhere.
"""

import ast
import html
import json
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "aotoolkit"
FOLDERS = {"notebooks": "Notebooks", "tutorials": "Tutorials"}
PLOTLY = "application/vnd.plotly.v1+json"
# Parts of a part that have pages of their own.
_BELOW = {"evals": ("evals.baselines", "evals.tasks", "evals.suites", "evals.sweep")}
_COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages that are made here to the navigation."""
    assert config.nav is not None
    for folder, title in FOLDERS.items():
        pages = [{_title(path): f"{folder}/{path.stem}.md"} for path in _notebooks(folder)]
        config.nav.append({title: pages})
    config.nav.append({"API": [{f"aotoolkit.{part}": f"api/{part}.md"} for part in _parts()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages."""
    for folder in FOLDERS:
        for path in _notebooks(folder):
            uri = f"{folder}/{path.stem}.md"
            files.append(File.generated(config, uri, content=_notebook_page(path)))
    for part in _parts():
        files.append(File.generated(config, f"api/{part}.md", content=_api_page(part)))
    files.append(File.generated(config, "js/plotly.min.js", content=get_plotlyjs()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lets links to notebooks, which are right in the repository, be right on the site."""
    return re.sub(r"\]\(\.\./(notebooks|tutorials)/(\w+)\.ipynb\)", r"](\1/\2.md)", markdown)


# --- notebooks ---------------------------------------------------------------------------------


def _notebooks(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.ipynb"))


def _title(path: Path) -> str:
    first = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    title = first.removeprefix("# ")
    number = path.stem.split("_")[0]
    return title if title.startswith(number) else f"{int(number)}. {title}"


def _notebook_page(path: Path) -> str:
    parts = []
    has_figure = False
    for index, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(_text(cell.source))
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_output(output, f"figure-{index}") for output in cell.outputs]
            has_figure |= any(PLOTLY in output.get("data", {}) for output in cell.outputs)
    if has_figure:
        parts.insert(1, '<script src="../js/plotly.min.js"></script>')
    where = f"{path.parent.name}/{path.name}"
    parts.append(f"*This page is the notebook `{where}` with its outputs; run it with `make lab`.*")
    return "\n\n".join(parts)


def _text(source: str) -> str:
    """Markdown of Jupyter -> that of the site: links, hidden solutions, formulas."""
    source = source.replace("](../docs/", "](../").replace("<details>", '<details markdown="1">')
    source = source.replace("<summary>", '<summary markdown="0">')
    blocks = re.split(r"(^```.*?^```)", source, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _formulas(part) for part in blocks)


def _formulas(text: str) -> str:
    def block(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1].replace("\n", " "), display="block")

    def inline(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1])

    text = re.sub(r"\$\$(.+?)\$\$", block, text, flags=re.DOTALL)
    return re.sub(r"(?<![\w$])\$(?! )([^$\n]+)(?<! )\$(?![\w$])", inline, text)


def _output(output: NotebookNode, name: str) -> str:
    data = output.get("data", {})
    if PLOTLY in data:
        figure = json.dumps({key: data[PLOTLY][key] for key in ("data", "layout")})
        draw = f'Plotly.newPlot("{name}", figure.data, figure.layout, {{responsive: true}});'
        code = f"{{const figure = {figure}; {draw}}}".replace("</", "<\\/")
        return f'<div class="output" id="{name}"></div>\n<script>{code}</script>'
    if "text/html" in data:
        shown = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        # Blank lines would end the block for the Markdown parser.
        shown = re.sub(r"\n\s*\n", "\n", shown).strip()
    else:
        text = _COLOUR_CODE.sub("", output.get("text") or data.get("text/plain", ""))
        shown = f"<pre>{html.escape(text.strip())}</pre>"
    return f'<div class="output" markdown="0">\n{shown}\n</div>'


# --- the API -----------------------------------------------------------------------------------


def _parts() -> list[str]:
    """The public parts of the package."""
    found = [*sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")), "plots"]
    return [part for name in found for part in (name, *_BELOW.get(name, ()))]


def _exports(module: str) -> list[str]:
    """`__all__` of a module, read without importing it; of one without, what has no underscore."""
    base = PACKAGE.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]


def _api_page(part: str) -> str:
    names = [name for name in _exports(part) if not name.isupper()]
    entries = [f"::: aotoolkit.{part}.{name}" for name in names]
    return "\n\n".join([f"# aotoolkit.{part}", *entries])
