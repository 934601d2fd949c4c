"""Texts with labels, from the files that such data comes in.

Read with the standard library and Arrow rather than with pandas, which takes a label such as
"None", "NA" or "null" for a missing value.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aotoolkit.data.context import is_text
from aotoolkit.errors import DataError

FILE_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class LabelledTexts:
    """Each text once, with everything that is true of it.

    Attributes:
        texts: text -> its labels. Rows that share a text are one text with the labels of them all,
            so that no question about it has "No" as its answer where another row says "Yes".
        origin: the file or dataset they come from, for the manifest.
        left_out: how many rows had another label than those asked for.
    """

    texts: Mapping[str, frozenset[str]]
    origin: str
    left_out: int = 0

    @property
    def counts(self) -> Counter[str]:
        """How many texts have a label, the most frequent first."""
        counts = Counter(label for labels in self.texts.values() for label in labels)
        return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))

    @property
    def digest(self) -> str:
        """SHA-256 of the texts and labels, whatever their order."""
        lines = sorted(json.dumps([text, sorted(labels)]) for text, labels in self.texts.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_labelled_texts(
    source: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str = "label",
    labels: Mapping[str, str] | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> LabelledTexts:
    """Read texts and labels from a file, or from a Hugging Face dataset.

    Args:
        source: a .csv, .tsv, .json (a list of objects), .jsonl or .parquet file, or the name
            `owner/name` of a dataset on the Hub.
        text: name of the column with the text.
        label: name of the column with the label; where it holds a list, all of them are true.
        labels: label in the data -> label in questions. Rows with no label of these are left out.
            Default: all labels, as they are.
        subset: of a dataset on the Hub.
        split: of a dataset on the Hub; "train[:5000]" takes a part.
        revision: of a dataset on the Hub; give a commit to read the same rows next year.

    Raises:
        DataError: no such file, one that is not what its name says, a missing column, or a row
            without text or label (an empty list of labels is one that says nothing is true).
    """
    path = Path(source)
    if path.suffix.lower() in FILE_KINDS:
        rows, origin = _file_rows(path), path.name
    else:
        rows, origin = _hub_rows(os.fspath(source), label, subset, split, revision)
    return labelled_texts(rows, text=text, label=label, labels=labels, origin=origin)


def labelled_texts(
    rows: Iterable[Mapping[str, Any]],
    *,
    text: str = "text",
    label: str = "label",
    labels: Mapping[str, str] | None = None,
    origin: str = "rows in memory",
) -> LabelledTexts:
    """`read_labelled_texts` for rows that are at hand."""
    found: dict[str, set[str]] = {}
    left_out = 0
    for number, row in enumerate(rows, start=1):
        where = f"Row {number} of {origin}"
        for column in (text, label):
            if column not in row:
                raise DataError(
                    f"{where} has no column {column!r}; its columns are "
                    f"{', '.join(repr(name) for name in row)}. Name the columns with text= and "
                    "label=."
                )
        values = row[label] if isinstance(row[label], list | tuple) else [row[label]]
        names = [_label_name(value, where) for value in values]
        if labels is not None:
            kept = [labels[name] for name in names if name in labels]
            if names and not kept:
                left_out += 1
                continue
            names = kept
        if "" in names:
            raise DataError(
                f"{where} has no label. Leave such rows out: by labels={{...}}, which names the "
                "labels to take, or in the data."
            )
        content = row[text]
        if not is_text(content):
            raise DataError(f"{where} has no text, but {content!r}. Leave it out of the data.")
        found.setdefault(content, set()).update(names)
    if not found:
        raise DataError(
            f"{origin} has no row to use"
            + (f" ({left_out} left out by labels=)." if left_out else ".")
        )
    return LabelledTexts(
        {content: frozenset(names) for content, names in found.items()}, origin, left_out
    )


def _label_name(value: Any, where: str) -> str:
    if value is None or value != value:  # a missing number is NaN in Arrow files made by pandas
        return ""
    if isinstance(value, bool | int | float) or is_text(value):
        return str(value).strip()
    if value == "" or (isinstance(value, str) and value.isspace()):
        return ""
    raise DataError(f"{where} has the label {value!r}; expected text, a number or a list of them.")


def _file_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            yield from _csv_rows(path, "\t" if kind == ".tsv" else ",")
        elif kind == ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _object(json.loads(line), f"Line {number} of {path.name}")
        elif kind == ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(content, list):
                raise DataError(
                    f"{path.name} holds a {type(content).__name__}; expected a list of objects."
                )
            for number, entry in enumerate(content, start=1):
                yield _object(entry, f"Entry {number} of {path.name}")
        else:
            yield from _parquet_rows(path)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{path.name} is not {kind.removeprefix('.')} in UTF-8: {error}."
        ) from error


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {str(value)[:80]!r}; expected an object with named columns.")
    return value


def _csv_rows(path: Path, delimiter: str) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"The header of {path.name} has {twice[0]!r} twice; rename one.")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"Line {reader.line_num} of {path.name} has {len(row)} columns, the header "
                    f"has {len(header)}. Quote fields that hold a {delimiter!r}."
                )
            yield dict(zip(header, row, strict=True))


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not parquet: {error}.") from error


def _hub_rows(
    name: str, label: str, subset: str | None, split: str, revision: str | None
) -> tuple[Iterable[Mapping[str, Any]], str]:
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot read the dataset {name!r} (subset {subset!r}, split {split!r}) of the Hugging "
            f"Face Hub: {error} Check the names, or give a file ({', '.join(FILE_KINDS)})."
        ) from error
    assert isinstance(rows, datasets.Dataset)
    origin = f"{name} ({split})" if subset is None else f"{name} ({subset}, {split})"
    feature = rows.features.get(label)
    if isinstance(feature, datasets.ClassLabel):
        names: Sequence[str] = feature.names

        def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
            # Hub datasets mark a missing class with -1.
            value = row[label]
            return {**row, label: names[value] if value is not None and value >= 0 else None}

        return (named(row) for row in rows), origin  # type: ignore[arg-type]
    return rows, origin  # type: ignore[return-value]
