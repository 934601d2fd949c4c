"""Checkpoints are whole or not there, and a broken one is seen."""

import errno
import os
import shutil
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aotoolkit.errors import BrokenCheckpointWarning, CheckpointError
from aotoolkit.training import checkpoints
from aotoolkit.training.checkpoints import (
    append_row,
    fault,
    finish,
    keep_rows,
    last_good,
    load_weights,
    read_rows,
    save_weights,
    trainable_tensors,
    writing,
)


def save(run, step, *, keep=2):
    staged = run / checkpoints.STAGING / f"checkpoint-{step}"
    save_weights({"a": torch.full((4, 4), float(step))}, staged)
    (staged / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    finish(staged, run / f"checkpoint-{step}", keep=keep)
    return run / f"checkpoint-{step}"


def test_the_newest_whole_one_is_found_and_old_ones_go(tmp_path):
    assert last_good(tmp_path / "none") is None
    for step in (2, 4, 10):
        save(tmp_path, step)
    assert [folder.name for folder in checkpoints.checkpoints(tmp_path)] == [
        "checkpoint-4",
        "checkpoint-10",
    ]
    assert last_good(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_replaces_one_of_its_name(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "checkpoint-4" / "left over").write_text("")
    assert fault(save(tmp_path, 4)) is None
    assert not (tmp_path / "checkpoint-4" / "left over").exists()


FILES = ["adapter.safetensors", "trainer_state.json", "checkpoint.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "changed"])
def test_a_broken_one_is_passed_over_with_a_warning(tmp_path, name, harm):
    save(tmp_path, 2)
    path = save(tmp_path, 4) / name
    content = path.read_bytes()
    changed = {"empty": b"", "cut": content[: len(content) // 2], "changed": b"x" + content[1:]}
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[harm])
    with pytest.warns(BrokenCheckpointWarning, match=r"checkpoint-4 is broken.*checkpoint-2"):
        assert last_good(tmp_path) == tmp_path / "checkpoint-2"
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match="checkpoint-4 is broken"):
        last_good(tmp_path)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_seen(tmp_path_factory, at, bit):
    folder = save(tmp_path_factory.mktemp("run"), 1)
    path = folder / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert fault(folder) == "adapter.safetensors is not what was written"


def test_a_half_written_one_is_no_checkpoint(tmp_path):
    save(tmp_path, 2)
    staged = tmp_path / checkpoints.STAGING / "checkpoint-4"
    save_weights({"a": torch.zeros(2)}, staged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_good(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_names_the_last_good_one(tmp_path, error):
    def full():
        with writing(tmp_path, "checkpoint-6"):
            raise error

    with pytest.raises(CheckpointError, match=r"checkpoint-6.*no checkpoint yet.*MiB are free"):
        full()
    save(tmp_path, 2)
    (save(tmp_path, 4) / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint-2 is the last good checkpoint"):
        full()


def test_weights_come_back_as_they_were(tmp_path):
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    tensors = trainable_tensors(model)
    assert tensors.keys() == {"weight"}
    save_weights(tensors, tmp_path)
    other = torch.nn.Linear(3, 2)
    other.bias.requires_grad_(False)
    load_weights(other, tmp_path)
    assert torch.equal(other.weight, model.weight)
    assert not torch.equal(other.bias, model.bias)
    with pytest.raises(CheckpointError, match="trained other weights"):
        load_weights(torch.nn.Linear(3, 2), tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(other, tmp_path)


def test_rows_cut_off_by_a_kill_and_rows_run_again_are_forgotten(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    keep_rows(path, 3)
    for step in range(1, 6):
        append_row(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    keep_rows(path, 3)
    append_row(path, {"step": 4})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
