"""A file is replaced whole, or left as it was."""

import os

import pytest

from aotoolkit.atomic import replacing


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
