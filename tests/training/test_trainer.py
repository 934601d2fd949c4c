"""Training on a tiny random model: what is trained, what the loss is, and going on after a stop."""

import json

import pytest
import tiny
import torch
from tiny_examples import contract, examples

from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import ORACLE_ADAPTER, TrainingConfig, train_oracle, trainer
from aotoolkit.training.collator import ActivationCollator
from aotoolkit.training.loss import answer_logits


def traced():
    return TracedModel(tiny.model(), tiny.tokenizer())


def config(folder, **options):
    settings = {
        "batch_size": 4,
        "lora_rank": 4,
        "warmup_steps": 2,
        "save_steps": 4,
        "eval_steps": 4,
    }
    extra = {"disable_tqdm": True, "logging_steps": 1}
    return TrainingConfig(output_dir=folder, extra_arguments=extra, **(settings | options))


def train(model, folder, **options):
    return train_oracle(
        model,
        examples(40),
        config(folder, **options),
        contract=contract(model.tokenizer),
        transform=VectorTransform(),
        validation=examples(8, seed=9),
    )


def weights(model):
    return {
        name: parameter.detach().clone()
        for name, parameter in model.hf_model.named_parameters()
        if "lora_" in name
    }


def losses(folder):
    state = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
    history = json.loads((state / "trainer_state.json").read_text())["log_history"]
    return [(row["step"], row["loss"]) for row in history if "loss" in row]


def test_only_the_adapter_is_trained_and_the_loss_falls(tmp_path):
    model = traced()
    digest = model.base_digest
    figures = train(model, tmp_path, max_steps=24, learning_rate=1e-2)
    assert model.base_digest == digest
    history = losses(tmp_path)
    assert history[-1][1] < 0.5 * history[0][1]
    assert model.adapter_names == (ORACLE_ADAPTER,)
    assert figures["test"]["n"] == 8
    assert set(figures["test"]) == {"with", "without", "n"}


def test_a_stopped_run_goes_on_as_an_unbroken_one(tmp_path, monkeypatch):
    whole = traced()
    train(whole, tmp_path / "whole", max_steps=8)
    folder = tmp_path / "stopped"

    class Killed(Exception):
        pass

    original = trainer.reading_accuracy
    calls: list[int] = []

    def killed_the_second_time(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(*args)

    monkeypatch.setattr(trainer, "reading_accuracy", killed_the_second_time)
    with pytest.raises(Killed):
        train(traced(), folder, max_steps=8)
    monkeypatch.undo()
    assert (folder / "checkpoint-4").is_dir()
    resumed = traced()
    train(resumed, folder, max_steps=8)
    for (name, ours), theirs in zip(weights(resumed).items(), weights(whole).values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert losses(folder) == losses(tmp_path / "whole")


def test_a_model_that_has_an_adapter_is_refused(tmp_path):
    model = traced()
    train(model, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="has the adapters"):
        train(model, tmp_path / "again", max_steps=1)


def test_logits_are_those_of_a_plain_forward_with_a_plain_hook():
    model = traced()
    collator = ActivationCollator(model, contract(model.tokenizer), VectorTransform())
    drawn = examples(6, seed=4)
    batch = collator(drawn)
    with torch.no_grad():
        logits, labels = answer_logits(
            model.hf_model,
            batch,
            block=model.blocks[0],
            head=model.hf_model.get_output_embeddings(),
        )
    for row, example in enumerate(drawn):
        prompt = collator.prompt(example)
        (vectors,) = collator.vectors([example])

        def hook(_module, _args, hidden, prompt=prompt, vectors=vectors):
            hidden = hidden.clone()
            for position, vector in zip(prompt.placeholder_positions, vectors, strict=True):
                h = hidden[0, position]
                hidden[0, position] = h + h.norm() * vector / vector.norm()
            return hidden

        handle = model.blocks[0].register_forward_hook(hook)
        with torch.no_grad():
            plain = model.hf_model(input_ids=torch.tensor([prompt.token_ids])).logits[0]
        handle.remove()
        own = batch.answer_rows == row
        start = prompt.answer_start
        torch.testing.assert_close(logits[own], plain[start - 1 : -1], atol=1e-4, rtol=1e-4)
        assert labels[own].tolist() == list(prompt.token_ids[start:])
