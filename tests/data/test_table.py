"""Labelled texts from every kind of file, and what is no such file."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.data.table import labelled_texts, read_labelled_texts
from aotoolkit.errors import DataError

ROWS = [
    {"text": 'It is blue, "very".\nYes.', "label": "None"},
    {"text": "It is red.", "label": "NA"},
    {"text": "It is nothing.", "label": "null"},
]
EXPECTED = {row["text"]: frozenset([row["label"]]) for row in ROWS}


def write(path, rows):
    table = datasets.Dataset.from_list(rows)
    match path.suffix:
        case ".csv":
            table.to_csv(str(path), index=False)
        case ".tsv":
            table.to_csv(str(path), index=False, sep="\t")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        case ".parquet":
            table.to_parquet(str(path))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_labels_that_look_missing_are_labels(tmp_path, kind):
    found = read_labelled_texts(write(tmp_path / f"data.{kind}", ROWS))
    assert found.texts == EXPECTED
    assert found.origin == f"data.{kind}"


def test_the_digest_is_that_of_the_content(tmp_path):
    one = read_labelled_texts(write(tmp_path / "a.csv", ROWS))
    other = read_labelled_texts(write(tmp_path / "b.jsonl", ROWS[::-1]))
    assert one.digest == other.digest
    assert one.digest != labelled_texts([*ROWS, {"text": "It is red.", "label": "blue"}]).digest


def test_rows_of_one_text_are_one_text():
    rows = [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}, {"text": "a", "label": "x"}]
    assert labelled_texts(rows).texts == {"a": frozenset(["x", "y"])}


def test_lists_of_labels_and_numbers():
    rows = [
        {"text": "a", "label": ["x", "y"]},
        {"text": "b", "label": []},
        {"text": "c", "label": 1},
        {"text": "d", "label": True},
    ]
    found = labelled_texts(rows)
    assert list(map(sorted, found.texts.values())) == [["x", "y"], [], ["1"], ["True"]]
    assert found.counts == {"x": 1, "y": 1, "1": 1, "True": 1}


def test_naming_labels_leaves_the_others_out():
    rows = [
        {"text": "a", "label": 1},
        {"text": "b", "label": -1},
        {"text": "c", "label": None},
        {"text": "d", "label": float("nan")},
        {"text": "", "label": 7},
    ]
    found = labelled_texts(rows, labels={"1": "true", "0": "false"})
    assert found.texts == {"a": frozenset(["true"])}
    assert found.left_out == 4


@pytest.mark.parametrize("label", [None, "", " ", float("nan"), [None], ["x", ""]])
def test_rows_without_a_label(label):
    with pytest.raises(DataError, match="Row 2 of rows in memory has no label"):
        labelled_texts([{"text": "a", "label": "x"}, {"text": "b", "label": label}])


@pytest.mark.parametrize("text", [None, "", "\n ", 3, ["a"], "half \ud83d"])
def test_rows_without_a_text(text):
    with pytest.raises(DataError, match="Row 1 of rows in memory has no text"):
        labelled_texts([{"text": text, "label": "x"}])


@pytest.mark.parametrize("label", [{"a": 1}, b"x", "\ud83d"])
def test_labels_that_are_none(label):
    with pytest.raises(DataError, match="expected text, a number or a list"):
        labelled_texts([{"text": "a", "label": label}])


def test_missing_columns_are_named(tmp_path):
    path = write(tmp_path / "data.csv", ROWS)
    with pytest.raises(DataError, match="no column 'sentence'; its columns are 'text', 'label'"):
        read_labelled_texts(path, text="sentence")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,b,c\n", "Line 2 of a.csv has 3 columns"),
        ("a.csv", b'text,label\n"a,b\n', "not csv in UTF-8"),
        ("a.csv", b"text,label\n\xff,b\n", "not csv in UTF-8"),
        ("a.csv", b"", "no row to use"),
        ("a.csv", b"text,label\n", "no row to use"),
        ("a.json", b"{}", "expected a list of objects"),
        ("a.json", b"[1]", "Entry 1 of a.json"),
        ("a.json", b"[", "not json in UTF-8"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n[]\n', "Line 2 of a.jsonl"),
        ("a.jsonl", b"{", "not jsonl in UTF-8"),
        ("a.parquet", b"PAR1 no PAR1", "not parquet"),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labelled_texts(tmp_path / name)


def test_a_column_named_twice_is_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("text,label,label\na,b,c\n")
    with pytest.raises(DataError, match="'label' twice"):
        read_labelled_texts(path)


def test_absent_files(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_labelled_texts(tmp_path / "a.csv")


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert read_labelled_texts(tmp_path / "a.csv").texts == {"a": frozenset("b")}


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "text": st.text(max_size=5) | st.none() | st.integers(),
                "label": st.recursive(
                    st.none() | st.text(max_size=3) | st.floats() | st.booleans(), st.lists
                ),
            }
        )
    )
)
def test_any_rows_give_texts_with_labels_or_an_error(rows):
    try:
        found = labelled_texts(rows)
    except DataError:
        return
    assert all(text.strip() for text in found.texts)
    assert all(name.strip() == name != "" for labels in found.texts.values() for name in labels)


def test_the_published_files(shared):
    folder = shared / "data" / "activation_oracles" / "classification"
    found = read_labelled_texts(folder / "singular_plural.csv", text="sentence", label="n_subjects")
    assert found.counts == {"single": 184, "multiple": 179}
    cities = read_labelled_texts(folder / "cities.csv", text="statement")
    assert cities.counts == {"0": 748, "1": 748}
