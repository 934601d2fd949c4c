"""What both widgets share: their front end as one module, and how they look without a kernel.

A front end is a plain ES module. It imports `display.js` as any module would, which anywidget
cannot serve: a front end reaches the browser as one string. So the shared module is put where the
import stands, and that is all the build there is.

Every widget has `static_html()`, without script and readable without style. It travels beside the
live view in each output, because a saved notebook that nobody has trusted, GitHub and nbviewer show
only that.
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from aotoolkit.errors import MissingExtraError

try:
    import anywidget
    import traitlets as t
    from IPython.display import HTML
except ImportError as error:
    raise MissingExtraError(
        "Widgets need anywidget and ipywidgets, which are not installed. Install them with "
        "`pip install 'aotoolkit[notebook]'`."
    ) from error

_FOLDER = Path(__file__).parent
_SHARED_IMPORT = re.compile(r'^import \{[^}]*\} from "\./display\.js";\n', re.MULTILINE)


def front_end(name: str) -> str:
    """The ES module of a widget, with the module that both share inside it."""
    own = (_FOLDER / f"{name}.js").read_text(encoding="utf-8")
    shared = (_FOLDER / "display.js").read_text(encoding="utf-8")
    # A function and not the text itself, in which a backslash would be an escape.
    joined, count = _SHARED_IMPORT.subn(lambda _: shared.replace("export ", ""), own)
    assert count == 1, f"{name}.js imports display.js {count} times"
    return joined


def style_sheet(name: str) -> str:
    """The palette that both widgets share, and the widget's own rules."""
    return "\n".join(
        (_FOLDER / f"{part}.css").read_text(encoding="utf-8") for part in ("palette", name)
    )


class FrontEnd(anywidget.AnyWidget):
    """A widget that also shows something where no script runs.

    Attributes:
        label: what the widget is called, for readers of screens and as the title of its page.
    """

    # Of the subclass; anywidget makes traits of them.
    _esm: str
    _css: str

    label = t.Unicode().tag(sync=True)

    def static_html(self) -> str:
        """The present state as HTML, without script, readable without style."""
        raise NotImplementedError

    def snapshot(self) -> HTML:
        """The present state as a plain output, which a saved notebook shows everywhere."""
        return HTML(self.static_html())

    def save_html(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write one HTML file that works as here, without kernel and network.

        Args:
            path: of the file, which is written whole or not at all.
            title: of the page; default: the widget's label.

        Returns:
            The path.
        """
        from aotoolkit.widgets.export import save_page

        return save_page(path, [self], title=self.label if title is None else title)

    def front_end_state(self) -> dict[str, Any]:
        """The values that the front end reads, as JSON can hold them."""
        not_read = anywidget.AnyWidget.class_trait_names()
        names = [name for name in self.trait_names(sync=True) if name not in not_read]
        return self.get_state([name for name in names if not name.startswith("_")])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.static_html()}, metadata


_SIGNS = {"\n": "⏎", "\t": "⇥"}
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
_JOINER = "\u200d"


def visible(token: str) -> str:
    """A token with its white space and its invisible characters shown, as `display.js` does."""
    if token == _JOINER:
        return "⟨200D⟩"
    shown = re.sub("^ +| +$", lambda spaces: "·" * len(spaces[0]), token)
    return "".join(map(_visible_character, shown)) or "∅"


def _visible_character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    unseen = character != _JOINER and unicodedata.category(character) in _UNSEEN
    return f"⟨{ord(character):04X}⟩" if unseen else character


def short(value: Any) -> str:
    """A value as an error names it, cut where it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
