"""Python as text: what panels print of themselves, one argument or item to a line."""

from collections.abc import Iterable, Mapping
from typing import Any


def arguments_code(options: Mapping[str, Any]) -> str:
    """The keyword arguments of a call, each on a line of its own, up to its closing bracket."""
    return "".join(f"\n    {name}={value!r}," for name, value in options.items()) + "\n"


def list_code(items: Iterable[Any]) -> str:
    """A list, each item on a line of its own."""
    return "[\n" + "".join(f"    {item!r},\n" for item in items) + "]"
