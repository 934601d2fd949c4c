"""The estimate is near what a run takes, and leaves nothing behind."""

import dataclasses
import io
import json
import time

import pytest
import tiny
import torch
from rich.console import Console
from tiny_examples import contract, examples

from aotoolkit.errors import BatchTooLargeError
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, batch_size, train_oracle
from aotoolkit.training.estimate import estimate


@pytest.fixture
def model():
    return TracedModel(tiny.model(num_layers=3), tiny.tokenizer())


def config(folder, **options):
    settings = {"max_steps": 30, "batch_size": 8, "lora_rank": 4, "progress": False}
    return TrainingConfig(output_dir=folder, report_to=(), **(settings | options))


def estimated(model, settings, **options):
    held_out = examples(8, seed=9)
    made = contract(model.tokenizer)
    return estimate(model, examples(80), settings, contract=made, validation=held_out, **options)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "bf16": True}])
def test_it_is_near_what_the_run_takes(tmp_path, model, options):
    settings = config(tmp_path / "run", **options)
    found = estimated(model, settings)
    assert model.adapter_names == ()
    assert not (tmp_path / "run").exists()
    assert found.steps == 30
    begin = time.perf_counter()
    result = train_oracle(
        model, examples(80), settings, contract=contract(model.tokenizer), validation=examples(8)
    )
    taken = time.perf_counter() - begin
    # The machine may be busy at one time and idle at the other.
    assert taken / 20 < found.total_seconds < 20 * taken
    weights = {
        name: p.numel() for name, p in model.hf_model.named_parameters() if ".oracle." in name
    }
    assert found.trained_parameters == sum(weights.values())
    checkpoint = result.folder.parent / "checkpoint-30"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert found.checkpoint_bytes < size < 1.5 * found.checkpoint_bytes + 200_000


def test_it_is_a_table_and_json(tmp_path, model):
    found = estimated(model, config(tmp_path))
    out = io.StringIO()
    found.render(Console(file=out, width=80))
    assert "whole run" in out.getvalue()
    assert f"{found.trained_parameters:,}" in out.getvalue()
    assert json.loads(json.dumps(dataclasses.asdict(found)))["steps"] == 30
    assert 0 < found.peak_bytes < found.available_bytes


def test_out_of_memory_names_what_fits(tmp_path, model):
    def scarce(_module, _args, kwargs):
        if torch.is_grad_enabled() and kwargs["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    handle = model.hf_model.register_forward_pre_hook(scarce, with_kwargs=True)
    with pytest.raises(BatchTooLargeError, match=r"2 fit\. Set tokens_per_pass=\d+"):
        estimated(model, config(tmp_path))
    handle.remove()
    assert model.adapter_names == ()


def test_what_is_timed_is_the_step_alone(tmp_path, model, monkeypatch):
    def not_needed():
        raise AssertionError("everything fits")

    monkeypatch.setattr(batch_size, "clear_device_cache", not_needed)
    estimated(model, config(tmp_path))


def test_one_step_is_not_enough(tmp_path, model):
    with pytest.raises(ValueError, match="2 or more"):
        estimated(model, config(tmp_path), steps=1)
