"""Checkpoints of a run: whole or not there, checked before they are believed.

A checkpoint is written under a temporary name with a list of its files' digests, flushed to the
disk, and renamed. Whatever happens in between (a kill, a full disk, a power cut), the one before is
untouched and the half-written one is not taken for a checkpoint.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aotoolkit.atomic import replacing
from aotoolkit.errors import BrokenCheckpointWarning, CheckpointError

MANIFEST = "checkpoint.json"
WEIGHTS = "adapter.safetensors"
STAGING = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, broken ones too, oldest first."""
    if not run.is_dir():
        return []
    found = [entry for entry in run.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name)]
    return sorted(found, key=checkpoint_step)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is there and as it was written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is not what was written"
    return None


def last_good(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and all are broken.

    Warns:
        BrokenCheckpointWarning: the newest is broken, so an older one is gone on from.
    """
    broken: list[str] = []
    for folder in reversed(checkpoints(run)):
        problem = fault(folder)
        if problem is None:
            if broken:
                warnings.warn(
                    f"In {run}, {'; '.join(broken)}. Going on from {folder.name}, the last whole "
                    "one; the steps since then are run again.",
                    BrokenCheckpointWarning,
                    stacklevel=2,
                )
            return folder
        broken.append(f"{folder.name} is broken: {problem}")
    if broken:
        raise CheckpointError(
            f"No checkpoint in {run} can be gone on from: {'; '.join(broken)}. Restore one, or "
            "delete them to train from the beginning."
        )
    return None


@contextlib.contextmanager
def writing(run: Path, what: str) -> Iterator[None]:
    """Inside, a write that fails says which checkpoint is whole.

    Raises:
        CheckpointError: a write failed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Torch reports a full disk as a RuntimeError.
        if isinstance(error, CheckpointError):
            raise
        shutil.rmtree(run / STAGING, ignore_errors=True)
        good = next((f for f in reversed(checkpoints(run)) if fault(f) is None), None)
        name = f"{good.name} is the last good checkpoint" if good else "There is no checkpoint yet"
        raise CheckpointError(
            f"{what} could not be written to {run}: {error}. {name}. Make room "
            f"({_free(run)} are free), then start the same run again: it goes on from there."
        ) from error


def finish(staged: Path, target: Path, *, keep: int) -> None:
    """Gives a staged checkpoint its name, and deletes all but the newest `keep`."""
    digests = {
        str(path.relative_to(staged)): _digest(path)
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    (staged / MANIFEST).write_text(json.dumps({"files": digests}, indent=1))
    publish(staged, target)
    for old in checkpoints(target.parent)[:-keep]:
        shutil.rmtree(old)


def publish(staged: Path, target: Path) -> None:
    """Flushes a folder to the disk and renames it, in place of what had the name."""
    for path in staged.rglob("*"):
        _flush(path)
    _flush(staged)
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    _flush(target.parent)


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> copy on the CPU of each trained weight; under FSDP put together from its shards.

    With sharded weights every process must call this.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensor: Any = parameter.detach()
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            tensors[name.removeprefix("module.")] = whole.cpu().contiguous().clone()
    return tensors


def save_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the trained weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def load_weights(model: nn.Module, folder: Path) -> None:
    """Puts the trained weights of a folder into the model.

    Raises:
        CheckpointError: they are unreadable, or are other weights than the model trains.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    wanted = {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if wanted.keys() != tensors.keys():
        different = sorted(wanted.keys() ^ tensors.keys())
        raise CheckpointError(
            f"{folder} was saved by a run that trained other weights: {len(different)} differ, "
            f"such as {different[0]}. Choose another output_dir."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            shard: Any = parameter
            if hasattr(shard, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                whole = tensors[name].to(shard.device)
                parameter.copy_(distribute_tensor(whole, shard.device_mesh, shard.placements))
            else:
                parameter.copy_(tensors[name])


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
        _flush(temporary)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, but for a last one that a kill cut off."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def keep_rows(path: Path, last_step: int) -> None:
    """Forgets the lines of steps after `last_step`, which will be run again."""
    if not path.exists():
        return
    rows = [row for row in read_rows(path) if row["step"] <= last_step]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        _flush(temporary)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and writes renames through.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(run: Path) -> str:
    return f"{shutil.disk_usage(run).free / 2**20:,.0f} MiB"
