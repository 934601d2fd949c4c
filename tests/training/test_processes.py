"""Two processes train as one does at the same global batch."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import finish, model_and_batches, run_step, sharded, start, start_processes

from aotoolkit.training.checkpoints import read_rows

STEPS = {"max_steps": 5, "eval_steps": 5, "save_steps": 5, "batch_size": 8}
PIECES = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "tokens_per_pass": 64}


def results(folder):
    return (
        load_file(folder / "gradients"),
        [row["loss"] for row in read_rows(folder / "training.jsonl")],
        read_rows(folder / "validation.jsonl")[-1],
        load_file(folder / "oracle" / "adapter_model.safetensors"),
    )


@pytest.mark.parametrize(
    ("architecture", "options"), [("Qwen3", {}), ("Qwen3", PIECES), ("Qwen3Moe", PIECES)]
)
def test_two_processes_train_as_one(tmp_path, architecture, options):
    one, two = tmp_path / "one", tmp_path / "two"
    started = []
    for folder, begin in ((one, start), (two, lambda f, **o: start_processes(f, 2, **o))):
        folder.mkdir()
        given = {"gradients": folder / "gradients", "architecture": architecture, **STEPS}
        extra = {} if folder == one else options
        made = begin(folder, **given, **extra)
        started += made if isinstance(made, list) else [made]
    assert [finish(process) for process in started] == [0, 0, 0]
    gradients, losses, figures, weights = results(one)
    theirs = results(two)
    assert gradients.keys() == theirs[0].keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[0][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    assert len(losses) == 5
    assert theirs[1] == pytest.approx(losses, rel=1e-3)
    assert theirs[2]["loss"] == pytest.approx(figures["loss"], rel=1e-3)
    assert theirs[2]["n"] == figures["n"] == 8
    for name, tensor in weights.items():
        torch.testing.assert_close(theirs[3][name], tensor, atol=1e-3, rtol=1e-2, msg=name)


def test_two_processes_that_were_killed_go_on(tmp_path):
    options = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, "lora_dropout": 0.1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [finish(p) for p in start_processes(whole, 2, **options)] == [0, 0]
    killed = start_processes(broken, 2, kill_in=("append_row", 6), **options)
    assert killed[0].join(240) is None
    killed[1].kill()
    assert finish(killed[0]) == -9
    assert [finish(p) for p in start_processes(broken, 2, **options)] == [0, 0]
    for name in ("training.jsonl", "validation.jsonl"):
        assert read_rows(broken / name) == read_rows(whole / name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_sharded_weights_are_those_of_whole_ones(tmp_path, checkpointing):
    options = {"target": sharded, "checkpointing": checkpointing}
    assert [finish(p) for p in start_processes(tmp_path, 2, **options)] == [0, 0]
    model, batches = model_and_batches(tmp_path)
    for batch in batches:
        run_step(model, model.peft_model, batch, scale=1)
    expected = {n: p.grad for n, p in model.peft_model.named_parameters() if p.grad is not None}
    found = load_file(tmp_path / "gradients")
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
