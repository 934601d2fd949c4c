"""A training run on a tiny model in a process of its own, which can be killed.

The processes are forked from a server that has imported everything once.
"""

import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from tiny_examples import contract, examples
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import TrainingConfig, checkpoints, train_oracle, trainer
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.lora import lora_config
from aotoolkit.training.loss import answer_logits, oracle_loss

SETTINGS = {
    "max_steps": 12,
    "batch_size": 4,
    "lora_rank": 4,
    "lora_alpha": 4,
    "learning_rate": 1e-2,
    "save_steps": 3,
    "eval_steps": 2,
    "logging_steps": 1,
    "report_to": (),
    "progress": False,
}


def _killed_in(function, nth):
    """The function, in whose nth call the process is killed: half-way where it writes a file."""
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == nth:
            if function is checkpoints.save_weights:
                args[1].mkdir(parents=True, exist_ok=True)
                (args[1] / checkpoints.WEIGHTS).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


def run(folder, *, kill_in=None, gradients=None, architecture="Qwen3", environment=None, **options):
    """Trains; the arguments must be picklable."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if kill_in is not None:
        name, nth = kill_in
        setattr(checkpoints, name, _killed_in(getattr(checkpoints, name), nth))
    if gradients is not None:
        clip = trainer._OracleTrainer._clip_grad_norm

        def record(self, model):
            found = {
                name.replace("module.", ""): parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
            if self.state.global_step == 0 and self.args.process_index == 0:
                save_file(found, gradients)
            return clip(self, model)

        trainer._OracleTrainer._clip_grad_norm = record
    model = TracedModel(tiny.model(architecture, num_layers=3), tiny.tokenizer())
    held_out = examples(8, seed=9)
    settings = TrainingConfig(output_dir=Path(folder), **(SETTINGS | options))
    train_oracle(
        model,
        examples(40),
        settings,
        contract=contract(model.tokenizer),
        validation=held_out,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(folder, *, target=run, **options):
    """Starts a run in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aotoolkit.training", "transformers.models.qwen3"])
    process = context.Process(target=target, args=(str(folder),), kwargs=options)
    process.start()
    return process


def finish(process):
    """Waits for a process; returns its exit code."""
    process.join(240)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def start_processes(folder, count, **options):
    """Starts a run on several processes, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    return [
        start(folder, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(count)
    ]


def sharded(folder, environment, checkpointing):
    """Writes the gradients of one sharded step, and reads and writes sharded weights."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model, batches = model_and_batches(folder)
    mine = batches[rank]
    if checkpointing:
        model.hf_model.gradient_checkpointing_enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model.peft_model, mesh=mesh)
    weights = checkpoints.trainable_tensors(model.peft_model)
    if rank == 0:
        checkpoints.save_weights(weights, Path(folder) / "weights")
    torch.distributed.barrier()
    checkpoints.load_weights(model.peft_model, Path(folder) / "weights")
    again = checkpoints.trainable_tensors(model.peft_model)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    run_step(model, model.peft_model, mine, scale=2)
    gradients = {
        name: parameter.grad.full_tensor()
        for name, parameter in model.peft_model.named_parameters()
        if parameter.grad is not None
    }
    if rank == 0:
        save_file(gradients, Path(folder) / "gradients")
    torch.distributed.destroy_process_group()


def model_and_batches(folder):
    """A model with a random adapter, and the halves of a batch."""
    model = TracedModel(tiny.model(num_layers=3), tiny.tokenizer())
    made = contract(model.tokenizer)
    drawn = examples(8)
    collator = ActivationCollator(model, made, VectorTransform())
    config = TrainingConfig(output_dir=Path(folder), lora_rank=4)
    model.hf_model.requires_grad_(False)
    torch.manual_seed(0)
    model.add_adapter("oracle", lora_config(model, config))
    for name, parameter in model.hf_model.named_parameters():
        if ".oracle." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    whole = collator(drawn)
    parts = [collator(drawn[:4]), collator(drawn[4:])]
    return model, [replace(p, num_label_tokens=whole.num_label_tokens) for p in parts]


def run_step(model, called, batch, *, scale):
    """Forward and backward as the trainer does them."""
    model.peft_model.train()
    block, head = model.blocks[0], model.hf_model.get_output_embeddings()
    with model.using("oracle"), injecting(block, batch.injection):
        logits, labels = answer_logits(called, batch, block=block, head=head, inject=False)
        loss = scale * oracle_loss(logits, labels, batch.num_label_tokens)
        loss.backward()
