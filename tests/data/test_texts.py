"""Texts are read from every format, in order, and what cannot be read is named."""

import json

import pandas
import pytest
import tiny

from aotoolkit.data.texts import TextSpec, describe_texts, read_texts, text_ids
from aotoolkit.errors import ChatTemplateError, DataError
from aotoolkit.tracing.encoding import encode

CHAT = [{"role": "user", "content": "A hint?"}, {"role": "assistant", "content": "It is blue."}]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(path, **options):
    return [record.content for record in read_texts(TextSpec(data=path, **options))]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\ntwo", "three\n"]),
        ("document", ["one\ntwo\n\nthree\n"]),
    ],
)
def test_text_files_by_unit(tmp_path, unit, expected):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert contents(tmp_path / "a.txt", unit=unit) == expected


def test_signs_in_a_path_are_signs(tmp_path):
    folder = tmp_path / "corpus [v2]"
    folder.mkdir()
    (folder / "a[1].txt").write_text("the right one\n")
    (folder / "a1.txt").write_text("another\n")
    assert contents(folder / "a[1].txt") == ["the right one"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "bom.txt"
    path.write_bytes("\ufeffFirst.\nSecond.\n".encode())
    assert contents(path) == ["First.", "Second."]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "first"}])
    pandas.DataFrame({"text": ["third"]}).to_parquet(tmp_path / "sub" / "c.parquet")
    (tmp_path / "notes.md").write_text("not a text")
    assert contents(tmp_path) == ["first", "second", "third"]
    assert contents(str(tmp_path)) == ["first", "second", "third"]


def test_rows_are_counted_over_those_without_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": None}, {"text": " "}, {"text": "here"}])
    assert [(r.row, r.content) for r in read_texts(TextSpec(data=path))] == [(2, "here")]


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations"])
def test_chat_columns_in_both_conventions(tmp_path, column):
    share_gpt = [{"from": "human", "value": "A hint?"}, {"from": "gpt", "value": "It is blue."}]
    for name, chat in (("a.jsonl", CHAT), ("b.jsonl", share_gpt)):
        path = write_jsonl(tmp_path / name, [{column: chat, "model": "x"}])
        assert contents(path) == [tuple(CHAT)]


def test_a_chat_in_parquet(tmp_path):
    pandas.DataFrame({"messages": [CHAT]}).to_parquet(tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == [tuple(CHAT)]


def test_a_missing_column_is_answered_with_those_there_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "id": "y"}])
    with pytest.raises(DataError, match=r"no column 'text'\. Its columns: body, id"):
        contents(path, column="text")
    with pytest.raises(DataError, match=r"None is known .* body, id.*`column`"):
        contents(path)
    assert contents(path, column="body") == ["x"]


def test_two_columns_that_may_hold_texts(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "messages": CHAT}])
    with pytest.raises(DataError, match=r"Several may hold the texts \(text, messages\)"):
        contents(path)
    assert contents(path, column="messages") == [tuple(CHAT)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"{name}' is empty"):
        contents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"\n  \n"),
        ("a.jsonl", b"\n\n"),
        ("a.jsonl", b'{"text": ""}\n'),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n'),
        ("a.txt", b"\xff\xfe\xfa\n"),
        ("a.parquet", b"PAR1, or not"),
    ],
)
def test_files_without_texts_and_broken_ones(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        contents(tmp_path / name)


@pytest.mark.parametrize(
    "value", [3, ["a"], [{"role": "user"}], [{"role": "user", "content": None}]]
)
def test_values_that_are_neither_text_nor_chat(tmp_path, value):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": value}])
    with pytest.raises(DataError, match=r"a\.jsonl', row 0: "):
        contents(path)


@pytest.mark.parametrize("name", ["./none", "none.txt", "/a/b", "a/b/c", "~/none"])
def test_paths_that_do_not_exist_never_reach_the_hub(name):
    with pytest.raises(DataError, match="no file or folder"):
        next(read_texts(TextSpec(data=name)))


def test_a_folder_without_texts(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    for path in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(DataError, match=r"\.txt, \.jsonl or \.parquet"):
            contents(path)


def test_a_dataset_that_the_hub_does_not_give():
    with pytest.raises(DataError, match=r"'nobody/none' \(subset None, split 'train'\)"):
        next(read_texts(TextSpec(data="nobody/none")))


def test_unknown_unit():
    with pytest.raises(DataError, match="'line', 'paragraph', 'document'"):
        TextSpec(data="a.txt", unit="page")


def test_the_description_changes_with_the_texts_and_names_no_folder(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    before = describe_texts(TextSpec(data=path))
    assert str(tmp_path) not in json.dumps(before)
    path.write_text("two\n")
    assert describe_texts(TextSpec(data=path))["digest"] != before["digest"]
    assert describe_texts(TextSpec(data="owner/name", revision="abc"))["revision"] == "abc"


def test_ids_are_those_that_reading_activations_would_use():
    tokenizer = tiny.tokenizer()
    for content in ("My name is Anna and I live in Paris.", CHAT):
        expected = encode(
            tokenizer, content, add_generation_prompt=False, vocabulary_size=tiny.VOCABULARY
        ).token_ids
        assert text_ids(tokenizer, content, max_length=1000) == expected
        assert text_ids(tokenizer, content, max_length=3) == expected[:3]
    with pytest.raises(ChatTemplateError):
        text_ids(tiny.tokenizer(chat=False), CHAT, max_length=10)
