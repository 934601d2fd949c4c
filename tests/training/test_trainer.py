"""Training on a tiny random model: what is trained, what the loss is, what is left behind."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny_examples import contract, examples
from transformers import DefaultFlowCallback, TrainerState

from aotoolkit.errors import (
    AdapterStateError,
    BatchTooLargeError,
    CheckpointError,
    ContractError,
    LayerError,
    LoraTargetError,
    NonFiniteError,
    TrainingSettingsError,
)
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import ORACLE_ADAPTER, TrainingConfig, train_oracle, trainer
from aotoolkit.training.checkpoints import read_rows
from aotoolkit.training.collator import ActivationCollator


def traced(architecture="Qwen3", **options):
    if architecture == "GPT2":  # the only one here whose own dropout is on by default
        options = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} | options
    return TracedModel(tiny.model(architecture, num_layers=3, **options), tiny.tokenizer())


def config(folder, **options):
    settings = {
        "max_steps": 4,
        "batch_size": 4,
        "lora_rank": 4,
        "lora_alpha": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "save_steps": 4,
        "eval_steps": 4,
        "logging_steps": 1,
        "report_to": (),
        "progress": False,
    }
    return TrainingConfig(output_dir=folder, **(settings | options))


def train(model, folder, *, data=None, held_out=8, **options):
    return train_oracle(
        model,
        examples(40) if data is None else data,
        config(folder, **options),
        contract=contract(model.tokenizer),
        validation=examples(held_out, seed=9),
    )


def losses(folder):
    return [row["loss"] for row in read_rows(folder / "training.jsonl")]


def plain_loss(model, drawn, adapter="oracle"):
    """The mean loss of the answers' tokens by plain hooks, one example at a time."""
    collator = ActivationCollator(model, contract(model.tokenizer), VectorTransform())
    total, count = 0.0, 0
    for example in drawn:
        prompt = collator.prompt(example)
        kept = {}
        with model.using(None), torch.no_grad():
            handles = [
                model.blocks[layer].register_forward_hook(
                    lambda _m, _a, out, layer=layer, kept=kept: kept.__setitem__(
                        layer, (out[0] if isinstance(out, tuple) else out)[0]
                    )
                )
                for layer in example.layers
            ]
            model.hf_model(input_ids=torch.tensor([example.context_ids]))
            for handle in handles:
                handle.remove()
        vectors = torch.cat([kept[layer][list(example.positions)] for layer in example.layers])

        def hook(_module, _args, out, prompt=prompt, vectors=vectors):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            for position, vector in zip(prompt.placeholder_positions, vectors, strict=True):
                h = hidden[0, position]
                hidden[0, position] = h + h.detach().norm() * vector / vector.norm()
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = model.blocks[0].register_forward_hook(hook)
        with model.using(adapter):
            logits = model.hf_model(input_ids=torch.tensor([prompt.token_ids])).logits[0]
        handle.remove()
        targets = torch.tensor(prompt.token_ids)
        for position in range(prompt.answer_start, len(prompt.token_ids)):
            total = total - logits[position - 1].log_softmax(-1)[targets[position]]
            count += 1
    return total / count


class Recorded(Exception):
    pass


def first_gradients(model, folder, monkeypatch, data, **options):
    """The first step's loss and gradients as the trainer has them."""
    seen = {}

    def record(self, model):
        seen.update(
            (name.replace("base_model.model.", "").removeprefix("module."), p.grad.clone())
            for name, p in model.named_parameters()
            if p.grad is not None
        )
        raise Recorded

    monkeypatch.setattr(trainer._OracleTrainer, "_clip_grad_norm", record)
    with pytest.raises(Recorded):
        train(model, folder, data=data, batch_size=len(data), **options)
    monkeypatch.undo()
    return seen


def adapter_like_the_trainers(model, folder):
    """Adds the adapter with the weights that the trainer starts from."""
    from transformers import set_seed

    from aotoolkit.training.lora import lora_config

    set_seed(0)
    model.add_adapter(ORACLE_ADAPTER, lora_config(model, config(folder)))


PIECES = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("Qwen3", {}),
        ("Qwen3", {"tokens_per_pass": 64}),
        ("Qwen3", PIECES),
        ("GPT2", PIECES),
        ("Gemma3Text", {}),
        ("Qwen3Moe", PIECES),
    ],
)
def test_gradients_are_those_of_plain_hooks(tmp_path, monkeypatch, architecture, options):
    data = examples(8)
    ours = first_gradients(traced(architecture), tmp_path, monkeypatch, data, **options)
    model = traced(architecture)
    adapter_like_the_trainers(model, tmp_path)
    plain_loss(model, data).backward()
    theirs = {n: p.grad for n, p in model.hf_model.named_parameters() if ".oracle." in n}
    theirs = {name: grad for name, grad in theirs.items() if grad is not None}
    assert ours.keys() == theirs.keys()
    assert any(grad.abs().max() > 1e-3 for grad in theirs.values())
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, atol=2e-4, rtol=1e-3, msg=name)


def test_the_first_loss_is_that_of_plain_hooks(tmp_path):
    data = examples(4)
    train(traced(), tmp_path, data=data, max_steps=1)
    model = traced()
    adapter_like_the_trainers(model, tmp_path)
    assert losses(tmp_path)[0] == pytest.approx(plain_loss(model, data).item(), abs=1e-4)


def test_only_the_adapter_is_trained_and_the_loss_falls(tmp_path):
    model = traced()
    digest = model.base_digest
    flags = {name: p.requires_grad for name, p in model.hf_model.named_parameters()}
    use_cache = model.hf_model.config.use_cache
    result = train(model, tmp_path, max_steps=20, lora_alpha=16)
    assert model.base_digest == digest
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]
    assert model.adapter_names == (ORACLE_ADAPTER,)
    assert model.hf_model.config.use_cache == use_cache
    for name, parameter in model.hf_model.named_parameters():
        plain = name.replace(".base_layer", "")
        assert ".oracle." in name or parameter.requires_grad == flags[plain], name
    assert not model.hf_model.training
    assert result.metrics.sources["test"].n == 8
    assert result.best_step in {4, 8, 12, 16, 20}


def test_the_finished_oracle_can_be_loaded_and_describes_itself(tmp_path):
    model = traced()
    result = train(model, tmp_path)
    assert result.folder == tmp_path / "oracle"
    fresh = traced()
    oracle = Oracle.from_pretrained(result.folder, model=fresh)
    saved = OracleContract.read(result.folder)
    assert saved.base_digest == fresh.base_digest
    assert (saved.lora_rank, saved.lora_alpha, saved.rslora) == (4, 4, False)
    assert saved.training_data == ({"name": "test", "examples": 40},)
    assert saved.extra["validation"]["sources"]["test"]["n"] == 8
    acts = fresh.activations([5, 6, 7], layers=[1])
    mine = result.oracle.ask("What is it?", model.activations([5, 6, 7], layers=[1]))
    assert oracle.ask("What is it?", acts).text == mine.text
    card = (result.folder / "README.md").read_text()
    assert f"| test | 8 | {result.metrics.overall.loss:.3f} (" in card


def test_without_a_contract_it_is_an_activation_oracles(tmp_path):
    model = traced()
    one = [dataclasses.replace(e, layers=e.layers[:1]) for e in examples(8)]
    result = train_oracle(model, one, config(tmp_path))
    made = result.oracle.contract
    assert (made.dialect, made.formula, made.inject_layer) == (
        "activation_oracle",
        "add_norm_matched",
        1,
    )
    assert made.read_layers == (1, 2)
    assert made.layers_per_prompt == "one"
    assert made.base_digest == model.base_digest
    assert result.metrics is None
    assert result.best_step == 4


def test_bad_input_is_refused_and_leaves_the_model_alone(tmp_path):
    model = traced()
    made = contract(model.tokenizer)
    settings = config(tmp_path)

    def run(**options):
        return train_oracle(model, examples(8), settings, **({"contract": made} | options))

    with pytest.raises(ContractError, match="digest"):
        run(contract=dataclasses.replace(made, base_digest="0" * 64))
    with pytest.raises(ContractError, match="transform"):
        run(contract=dataclasses.replace(made, transform="whitened"))
    with pytest.raises(ContractError, match="base alone"):
        run(contract=dataclasses.replace(made, collection_adapter="organism"))
    with pytest.raises(LayerError, match=r"\[2\]"):
        run(contract=dataclasses.replace(made, read_layers=(1,)))
    with pytest.raises(ValueError, match="multiple of 3"):
        train(model, tmp_path, gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="no examples"):
        train(model, tmp_path, data=[])
    assert model.adapter_names == ()
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="has the adapters"):
        run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("lora_dropout", 1.0),
        ("early_stopping_patience", 0),
        ("lr_scheduler", "sudden"),
        ("max_steps", 0),
        ("num_epochs", 0),
        ("num_epochs", float("inf")),
        ("learning_rate", float("nan")),
        ("warmup_steps", float("inf")),
        ("adam_beta2", 1),
        ("adam_beta2", 2),
        ("weight_decay", -1),
        ("max_grad_norm", -1),
        ("max_grad_norm", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(output_dir=tmp_path, **{name: value})


def test_what_transformers_refuses_is_an_error_of_ours(tmp_path):
    with pytest.raises(TrainingSettingsError, match="transformers refuses"):
        train(traced(), tmp_path, extra_arguments={"optim": "none such"})


def test_the_precision_of_a_run_is_its_own(tmp_path):
    model = traced()
    seen = set()
    linear = model.hf_model.model.layers[0].self_attn.q_proj
    linear.register_forward_hook(lambda _module, _args, output: seen.add(output.dtype))
    for number, bf16 in enumerate([False, True, False]):
        seen.clear()
        train(model, tmp_path / str(number), bf16=bf16, held_out=0)
        assert (torch.bfloat16 in seen) == bf16, number
        model.delete_adapter(ORACLE_ADAPTER)


def test_an_early_error_leaves_the_model_as_it_was(tmp_path):
    model = traced()
    flags = {name: p.requires_grad for name, p in model.hf_model.named_parameters()}
    with pytest.raises(LoraTargetError):
        train(model, tmp_path, lora_routers=True)
    assert {name: p.requires_grad for name, p in model.hf_model.named_parameters()} == flags
    assert any(flags.values())


def test_a_contract_of_another_run_keeps_none_of_its_claims(tmp_path):
    model = traced()
    old = dataclasses.replace(
        contract(model.tokenizer),
        training_data=({"name": "old", "examples": 7},),
        extra={"validation": {"old": True}, "recommended_layer": [1, 2]},
    )
    made = train_oracle(model, examples(8), config(tmp_path), contract=old).oracle.contract
    assert [entry["name"] for entry in made.training_data] != ["old"]
    assert "validation" not in made.extra
    assert made.extra["recommended_layer"] == [1, 2]
    other = dataclasses.replace(old, tokenizer_digest="0" * 64)
    with pytest.raises(ContractError, match="its tokens or its chat template"):
        train_oracle(traced(), examples(8), config(tmp_path / "other"), contract=other)


def test_steps_follow_from_epochs(tmp_path):
    assert TrainingConfig(output_dir=tmp_path, num_epochs=2, batch_size=4).steps(10) == 5
    assert TrainingConfig(output_dir=tmp_path, max_steps=3).steps(10) == 3


@pytest.mark.parametrize("architecture", ["Qwen3", "Qwen3Moe"])
def test_an_error_leaves_the_model_as_it_was(tmp_path, monkeypatch, architecture):
    model = traced(architecture)
    flags = {name: p.requires_grad for name, p in model.hf_model.named_parameters()}
    monkeypatch.setattr(trainer, "score_examples", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, tmp_path)
    assert model.adapter_names == ()
    parameters = dict(model.hf_model.named_parameters())
    after = {name.replace(".base_layer", ""): p.requires_grad for name, p in parameters.items()}
    assert after == flags
    monkeypatch.undo()
    train(model, tmp_path)


def test_a_base_that_changes_is_noticed(tmp_path, monkeypatch):
    model = traced()
    original = trainer._OracleTrainer._forward_backward

    def change(self, *args):
        with torch.no_grad():
            model.hf_model.get_input_embeddings().weight[3] += 1
        return original(self, *args)

    monkeypatch.setattr(trainer._OracleTrainer, "_forward_backward", change)
    with pytest.raises(AdapterStateError, match="base changed"):
        train(model, tmp_path)


def test_a_loss_that_is_not_a_number_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        trainer._OracleTrainer, "_forward_backward", lambda *_: torch.tensor(math.nan)
    )
    with pytest.raises(NonFiniteError, match="step 1"):
        train(traced(), tmp_path)


def test_out_of_memory_names_the_batch_that_fits(tmp_path, monkeypatch):
    model = traced()

    def scarce(_module, _args, kwargs):
        if torch.is_grad_enabled() and kwargs["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    handle = model.hf_model.register_forward_pre_hook(scarce, with_kwargs=True)
    with pytest.raises(BatchTooLargeError, match=r"8 examples .* 2 fit.*tokens_per_pass=62"):
        train(model, tmp_path, batch_size=8)
    train(model, tmp_path, batch_size=8, tokens_per_pass=62)  # as advised
    handle.remove()
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


def test_early_stopping_keeps_the_best(tmp_path, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 2.5, 1.0])

    def scripted(drawn, scores):
        figures = original(drawn, scores)
        overall = dataclasses.replace(figures.overall, loss=next(values))
        return dataclasses.replace(figures, overall=overall)

    original = trainer.figures_of
    monkeypatch.setattr(trainer, "figures_of", scripted)
    options = {"max_steps": 10, "eval_steps": 2, "save_steps": 5, "early_stopping_patience": 2}
    result = train(traced(), tmp_path, **options)
    assert result.best_step == 4
    assert result.metrics.overall.loss == 2.0
    assert [row["step"] for row in read_rows(tmp_path / "validation.jsonl")] == [2, 4, 6, 8]
    # The weights are those of step 4, the same as those of a run that ends there.
    schedule = {"lr_scheduler": "constant_with_warmup"}
    values = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    stopped = train(traced(), tmp_path / "a", **options, **schedule)
    values = iter([3.0, 2.0])
    short = train(traced(), tmp_path / "b", **(options | {"max_steps": 4}), **schedule)
    digests = {r.oracle.model.adapter_digest(ORACLE_ADAPTER) for r in (stopped, short)}
    assert len(digests) == 1
    # The same command again does not train on.
    again = train(traced(), tmp_path / "a", **options, **schedule)
    assert again.best_step == 4
    assert again.oracle.model.adapter_digest(ORACLE_ADAPTER) in digests


def test_curves_are_on_disk_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(traced(), tmp_path, report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "eval/loss", "eval/loss_without", "eval/test/exact_match"} <= set(tags)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    values = [event.value for event in events.Scalars("train/loss")]
    assert values == pytest.approx(losses(tmp_path))


def test_a_bf16_run_reads_in_the_bases_own_dtype(tmp_path):
    train(traced(), tmp_path, bf16=True)
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


def test_extra_arguments_reach_the_trainer(tmp_path):
    train(traced(), tmp_path, extra_arguments={"optim": "sgd"})
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_the_last_step_is_scored_whatever_transformers_does(tmp_path, monkeypatch):
    original = DefaultFlowCallback.on_step_end

    def as_in_5_0(self, args, state, control, **options):
        control = original(self, args, state, control, **options)
        control.should_evaluate = state.global_step % state.eval_steps == 0
        return control

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", as_in_5_0)
    train(traced(), tmp_path, max_steps=3, eval_steps=2)
    assert [row["step"] for row in read_rows(tmp_path / "validation.jsonl")] == [2, 3]


def test_a_checkpoint_names_no_folder_of_transformers_own(tmp_path):
    train(traced(), tmp_path)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 4
    assert state["best_model_checkpoint"] is None


def test_an_older_checkpoint_keeps_the_best_that_it_names(tmp_path):
    for step in (2, 4, 8):
        trainer.best_folder(tmp_path, step).mkdir()
    for step, best in ((6, 2), (9, 8)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        TrainerState(best_global_step=best).save_to_json(folder / "trainer_state.json")
    trainer._forget_other_bests(tmp_path)
    assert {path.name for path in tmp_path.glob("best-*")} == {"best-2", "best-8"}


def test_machines_without_a_shared_folder_are_noticed(tmp_path, monkeypatch):
    run = SimpleNamespace(folder=tmp_path, data=SimpleNamespace(validation=()))
    two = SimpleNamespace(world_size=2)
    monkeypatch.setattr(trainer, "gather_object", lambda own: [*own, "checkpoint-3"])
    with pytest.raises(CheckpointError, match="process 0: no checkpoint; process 1: checkpoint-3"):
        trainer._resume_from(run, two)
    monkeypatch.setattr(trainer, "gather_object", lambda own: own * 2)
    assert trainer._resume_from(run, two) is None
    monkeypatch.setattr(trainer, "SHARED_FOLDER_DELAY", 0.0)
    with pytest.raises(CheckpointError, match=r"do not see the run\.json"):
        trainer._check_shared(run, two)
    (tmp_path / "run.json").touch()
    trainer._check_shared(run, two)
