"""A file is replaced whole, or left as it was."""

import os
from pathlib import Path

import pytest

from aotoolkit.atomic import put_in_place, replacing


def test_what_was_written_replaces_the_file_with_ordinary_rights(tmp_path):
    path, plain = tmp_path / "a.txt", tmp_path / "plain"
    path.write_text("old")
    plain.touch()
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "plain"]


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path, monkeypatch):
    target = tmp_path / "target"
    for text in ("first", "second"):
        parent = tmp_path / f"work {text}"
        made = parent / "new"
        made.mkdir(parents=True)
        (made / "file").write_text(text)
        put_in_place(made, target)
        assert (target / "file").read_text() == text
    made = tmp_path / "third" / "new"
    made.mkdir(parents=True)
    rename = Path.rename

    def fails(path, other):
        if path == made:
            raise OSError("in use")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="in use"):
        put_in_place(made, target)
    assert (target / "file").read_text() == "second"
