"""Which adapters are organisms of what: a mapping, or a YAML or JSON file.

```yaml
adapters:                      # adapter -> a folder, beside this file or absolute, or a Hub name;
  taboo-moon: ./taboo_moon     # those that the model has already need not stand here
taboo:                         # adapter -> its word, or a list of its spellings
  taboo-moon: moon
user_trait:                    # adapter -> the trait of the user
  gender-m: male
  gender-f: female
secret_constraint:             # adapter -> its constraints; null for those of the prompt files
  ssc: null
persona_qa:                    # adapter -> a file of people; null for the published, shuffled one
  personas: null
model_diffing:                 # adapter -> the domain
  em-finance: finance
questions:                     # task -> what an oracle is asked in place of the published question
  user_trait: Is the user a man or a woman?
```

Every key but for one task may be left out.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aotoolkit.errors import EvalError
from aotoolkit.tracing import TracedModel

TASKS = ("taboo", "user_trait", "secret_constraint", "persona_qa", "model_diffing")
# The others ask about each attribute in words of its own.
_WITH_ONE_QUESTION = ("taboo", "user_trait", "secret_constraint", "model_diffing")
_KEYS = ("adapters", *TASKS, "questions")


@dataclass(frozen=True, kw_only=True)
class Organisms:
    """Which adapters hold what; see the module for each.

    Attributes:
        adapters: Adapter -> where it is loaded from.
        taboo: Adapter -> its word and further spellings.
        user_trait: Adapter -> the trait.
        secret_constraint: Adapter -> its constraints; None for the published ones.
        persona_qa: Adapter -> a file of people; None for the published one.
        model_diffing: Adapter -> its domain.
        questions: Task -> what an oracle is asked.
    """

    adapters: Mapping[str, str] = field(default_factory=dict)
    taboo: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    user_trait: Mapping[str, str] = field(default_factory=dict)
    secret_constraint: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    persona_qa: Mapping[str, str | None] = field(default_factory=dict)
    model_diffing: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(getattr(self, task) for task in TASKS):
            raise EvalError(f"There is no organism; give some for {', '.join(TASKS)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters of all tasks."""
        return tuple(dict.fromkeys(name for task in TASKS for name in getattr(self, task)))

    def load_into(self, model: TracedModel) -> None:
        """Loads the adapters that a model has not.

        Raises:
            EvalError: One is not there, and it is not said where it is loaded from.
            The errors of `TracedModel.load_adapter`.
        """
        missing = [name for name in self.names if name not in model.adapter_names]
        if unknown := [name for name in missing if name not in self.adapters]:
            raise EvalError(
                f"The model has no adapter {unknown[0]!r}; it has {list(model.adapter_names)}. "
                "Load it, or say under `adapters` where it is loaded from."
            )
        for name in missing:
            model.load_adapter(name, self.adapters[name])


def read_organisms(path: str | os.PathLike[str]) -> Organisms:
    """Organisms from a YAML or JSON file; see the module for its form.

    Raises:
        EvalError: There is no such file, or it is not in that form; the message names file and key.
    """
    file = Path(path)
    if not file.is_file():
        raise EvalError(f"There is no file {file} of organisms.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvalError(f"{file} is neither YAML nor JSON in UTF-8: {error}.") from error
    if not isinstance(content, dict):
        raise EvalError(f"{file} holds {type(content).__name__}; expected the keys {_KEYS}.")
    values: dict[str, Any] = {}
    for key, entry in content.items():
        if key not in _KEYS:
            raise EvalError(f"{file}: the key {key!r} is unknown. The keys are {', '.join(_KEYS)}.")
        if not isinstance(entry, dict) or not entry:
            raise EvalError(f"{file}, {key}: {entry!r} must be a mapping that is not empty.")
        values[key] = {
            _name(name, f"{file}, {key}"): _value(key, value, f"{file}, {key}, {name}")
            for name, value in entry.items()
        }
    for name in values.get("questions", {}):
        if name not in _WITH_ONE_QUESTION:
            raise EvalError(
                f"{file}, questions: {name!r} is no task with one question; these are "
                f"{', '.join(_WITH_ONE_QUESTION)}."
            )
    for key in ("adapters", "persona_qa"):
        values[key] = {n: _beside(file, v) for n, v in values.get(key, {}).items()}
    try:
        return Organisms(**values)
    except EvalError as error:
        raise EvalError(f"{file}: {error}") from error


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name:
        raise EvalError(f"{where}: the key {name!r} is no name; put it in quotes.")
    return name


def _value(key: str, value: Any, where: str) -> Any:
    several = key in ("taboo", "secret_constraint")
    if value is None and key in ("secret_constraint", "persona_qa"):
        return None
    if isinstance(value, str) and value.strip() and key != "secret_constraint":
        return value
    if several and isinstance(value, list) and value:
        if bad := [entry for entry in value if not (isinstance(entry, str) and entry.strip())]:
            # YAML reads no, on and 3 as something else than text.
            raise EvalError(f"{where}: {bad[0]!r} is no text; put it in quotes.")
        return tuple(value)
    expected = "a list of texts" if key == "secret_constraint" else "a text"
    raise EvalError(f"{where}: {value!r} is not {expected}; a text may have to stand in quotes.")


def _beside(file: Path, value: str | None) -> str | None:
    """A path of the file's folder where there is one of that name; else as it is."""
    if value is None:
        return None
    there = file.parent / value
    return str(there) if there.exists() else value
