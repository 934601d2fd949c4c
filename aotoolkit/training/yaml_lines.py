"""YAML with the line of every key, so that what is wrong in a file can be pointed at."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aotoolkit.errors import RecipeError

Keys = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, as YAML 1.2 does and YAML 1.1, which PyYAML follows, does not."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        # Mapping -> its keys but for those that it merges; by id, since nodes have no hash.
        self.own_keys: dict[int, set[int]] = {}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class YamlFile:
    """A YAML file that holds a mapping.

    Attributes:
        path: the file.
        values: mappings with text keys, tuples and scalars.
        lines: where each key, and each item of a list, begins: the file, which may be an included
            one, and the line, counted from 1.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[Keys, tuple[Path, int]]

    def at(self, keys: Keys) -> str:
        """`file:line: key`, with the line of the deepest of these keys that is there."""
        length = len(keys)
        while keys[:length] not in self.lines:
            length -= 1
        path, line = self.lines[keys[:length]]
        key = ".".join(map(str, keys))
        return f"{path}:{line}" + (f": {key}" if key else "")

    def changed_by(self, other: "YamlFile") -> "YamlFile":
        """This file with what the other says in the place of what it says itself.

        Mappings are joined key by key; a list or a single value is replaced whole.
        """
        lines = dict(self.lines)

        def joined(own: Any, new: Any, keys: Keys) -> Any:
            if isinstance(own, dict) and isinstance(new, dict):
                return own | {
                    key: joined(own[key], value, (*keys, key)) if key in own else value
                    for key, value in new.items()
                }
            for known in [known for known in lines if known[: len(keys)] == keys]:
                del lines[known]
            return new

        values = joined(self.values, other.values, ())
        return YamlFile(other.path, values, {**lines, **other.lines})


def read_yaml(path: str | Path, *, including: tuple[Path, ...] = ()) -> YamlFile:
    """Reads a mapping with the lines of its keys.

    A file of nothing but `include: PATH` stands for the file there, relative to itself. One that
    says more is that file, which must then lie in the same folder, with the keys changed that it
    has itself.

    Args:
        path: the file.
        including: the files that led here, each by an `include`.

    Raises:
        RecipeError: No such file, not YAML, not a mapping, a key that is no text or stands twice,
            files that include each other, a change to a file of another folder.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"{file} is not there. Give the path of a recipe, a .yaml file.")
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not text in UTF-8: {error}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{file}:{line}: not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{file} is not YAML: {error}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{file}:1: a recipe is a mapping of sections, such as `model:`.")
    lines: dict[Keys, tuple[Path, int]] = {(): (file, 1)}
    try:
        values = _construct(loader, root, (), lines, file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{file}:{line}: {error.problem}.") from error
    except RecipeError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{file} holds what cannot be read: {error}.") from error
    if not isinstance(values.get("include"), str):
        return YamlFile(file, values, lines)
    included = file.parent / values.pop("include")
    where = f"{file}:{lines.pop(('include',))[1]}: include:"
    chain = (*including, file.resolve())
    if included.resolve() in chain:
        raise RecipeError(f"{where} a file cannot include itself, and {included} leads back here.")
    found = read_yaml(included, including=chain)
    if not values:
        return found
    if found.path.parent.resolve() != file.parent.resolve():
        raise RecipeError(
            f"{where} a file that changes another must lie beside it, because paths in a recipe "
            f"are relative to it, and {found.path} is in another folder. Move this file there; one "
            "of nothing but its `include` may stand here."
        )
    return found.changed_by(YamlFile(file, values, lines))


def _construct(
    loader: _Loader,
    node: yaml.Node,
    keys: Keys,
    lines: dict[Keys, tuple[Path, int]],
    file: Path,
) -> Any:
    if isinstance(node, yaml.MappingNode):
        if id(node) not in loader.own_keys:
            loader.own_keys[id(node)] = {id(key_node) for key_node, _ in node.value}
            loader.flatten_mapping(node)  # <<: *another
        own = loader.own_keys[id(node)]
        result: dict[str, Any] = {}
        stated: set[str] = set()
        for key_node, value_node in node.value:
            key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RecipeError(
                    f'{file}:{line}: the key {key_node.value} is no text; quote it: "'
                    f'{key_node.value}".'
                )
            # What is merged comes first, and may be said otherwise here.
            if key in stated:
                raise RecipeError(f"{file}:{line}: the key {key!r} stands here twice.")
            if id(key_node) in own:
                stated.add(key)
            lines[(*keys, key)] = (file, line)
            result[key] = _construct(loader, value_node, (*keys, key), lines, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*keys, index)] = (file, item.start_mark.line + 1)
        return tuple(
            _construct(loader, item, (*keys, index), lines, file)
            for index, item in enumerate(node.value)
        )
    return loader.construct_object(node)
