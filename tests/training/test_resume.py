"""A run that was killed goes on as if it had not been: curves and weights equal, bit for bit."""

import dataclasses
import json
import random
import shutil
import time

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_examples import contract, examples
from tiny_run import SETTINGS, finish, start

from aotoolkit.errors import BrokenCheckpointWarning, CheckpointError, RunMismatchError
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, checkpoints, train_oracle
from aotoolkit.training.checkpoints import last_good, read_rows

# Dropout, so that the random state matters; checkpoints and scorings fall apart.
OPTIONS = {"lora_dropout": 0.1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(start(folder, **OPTIONS)) == 0
    return folder


def same(found, expected):
    """Both curves and the finished weights are equal."""
    for name in ("training.jsonl", "validation.jsonl"):
        assert read_rows(found / name) == read_rows(expected / name)
    assert [row["step"] for row in read_rows(found / "training.jsonl")] == list(range(1, 13))
    weights = [load_file(run / "oracle" / "adapter_model.safetensors") for run in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize(
    "kill_in",
    [
        ("save_weights", 3),  # half of the best weights' file is written
        ("save_weights", 5),  # half of a checkpoint's file is written
        ("finish", 2),  # a checkpoint is written and has no name yet
        ("checkpoints", 2),  # it has its name, and the old ones are still there
        ("append_row", 8),  # the curve is ahead of the checkpoint
    ],
)
def test_a_run_killed_where_it_hurts_goes_on(tmp_path, unbroken, kill_in):
    killed = start(tmp_path, kill_in=kill_in, **OPTIONS)
    assert finish(killed) == -9
    assert not (tmp_path / "oracle").exists()
    assert finish(start(tmp_path, **OPTIONS)) == 0
    same(tmp_path, unbroken)


def rows_written(folder):
    path = folder / "training.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_at_random(folder, expected, kills, seed):
    """Kills a run again and again, each time some steps and a moment after it started.

    Returns:
        The step of the last checkpoint at each kill.
    """
    rng = random.Random(seed)
    steps = []
    while len(steps) < kills:
        last = last_good(folder)
        began = 0 if last is None else checkpoints.checkpoint_step(last)
        wanted, moment = began + rng.randint(0, 5), rng.uniform(0, 0.3)
        process = start(folder, **OPTIONS)
        while process.is_alive() and rows_written(folder) < wanted:
            time.sleep(0.002)
        process.join(moment)
        process.kill()  # Its exit code is read after this: a run may end just before the signal.
        process.join()
        if process.exitcode == 0:  # it got to the end: from the beginning again
            same(folder, expected)
            shutil.rmtree(folder)
            continue
        assert process.exitcode == -9
        steps.append(began)
    assert finish(start(folder, **OPTIONS)) == 0
    same(folder, expected)
    return steps


def test_a_run_killed_at_random_moments_goes_on(tmp_path, unbroken):
    killed_at_random(tmp_path / "run", unbroken, kills=3, seed=0)


@pytest.mark.slow
def test_a_run_killed_twenty_times_goes_on(tmp_path, unbroken):
    steps = killed_at_random(tmp_path / "run", unbroken, kills=20, seed=1)
    assert len(set(steps)) > 1, "every kill came before the first checkpoint"


def train(folder, *, data=None, validation=None, **options):
    model = TracedModel(tiny.model(num_layers=3), tiny.tokenizer())
    config = TrainingConfig(output_dir=folder, **(SETTINGS | OPTIONS | options))
    return train_oracle(
        model,
        examples(40) if data is None else data,
        config,
        contract=contract(model.tokenizer),
        validation=examples(8, seed=9) if validation is None else validation,
    )


@pytest.fixture
def copy(tmp_path, unbroken):
    """The finished run, without what comes after its last checkpoint."""
    shutil.copytree(unbroken, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "oracle")
    return tmp_path / "copy"


def test_a_broken_last_checkpoint_costs_one_interval(copy, unbroken):
    (copy / "checkpoint-12" / "adapter.safetensors").write_bytes(b"cut")
    with pytest.warns(BrokenCheckpointWarning, match="Going on from checkpoint-9"):
        train(copy)
    same(copy, unbroken)


def test_all_checkpoints_broken_is_an_error(copy):
    for step in (9, 12):
        (copy / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-9 is broken"):
        train(copy)


def test_a_finished_run_is_not_trained_again(copy, unbroken):
    rows = (copy / "training.jsonl").read_text()
    train(copy)
    assert (copy / "training.jsonl").read_text() == rows
    same(copy, unbroken)


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.5}, {"batch_size": 8}, {"seed": 7}, {"max_steps": 20}]
)
def test_other_settings_are_refused(copy, options):
    before = json.loads((copy / "run.json").read_text())
    ((name, value),) = options.items()
    with pytest.raises(RunMismatchError, match=rf"{name} was .* and is now {value}"):
        train(copy, **options)
    assert json.loads((copy / "run.json").read_text()) == before


def test_other_examples_are_refused(copy):
    changed, held_out = examples(40), examples(8, seed=9)
    changed[-1] = dataclasses.replace(changed[-1], answer="Another.")
    with pytest.raises(RunMismatchError, match="examples was"):
        train(copy, data=changed)
    with pytest.raises(RunMismatchError, match="validation was"):
        train(copy, validation=held_out[:-2])


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch, unbroken):
    original = checkpoints.save_weights

    def full(tensors, folder):
        if folder.name == "checkpoint-6":
            raise OSError(28, "No space left on device")
        original(tensors, folder)

    monkeypatch.setattr(checkpoints, "save_weights", full)
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-3 is the last good"):
        train(tmp_path)
    monkeypatch.undo()
    train(tmp_path)
    same(tmp_path, unbroken)
