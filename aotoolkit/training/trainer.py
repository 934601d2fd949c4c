"""Training an oracle with transformers.Trainer: LoRA on the base, activations of the base only.

Vectors are injected by a hook on a block inside the model's own forward, which is open until the
backward pass is done: so it works under DistributedDataParallel, under FSDP and with gradient
checkpointing, where the block runs again in the backward pass.

The loss of a step is the summed cross-entropy over the number of answer tokens of the *global*
batch. That is the same number however the batch is cut into processes and accumulation steps.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from peft import prepare_model_for_kbit_training
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from aotoolkit.data.example import Example
from aotoolkit.errors import (
    AdapterStateError,
    BatchTooLargeError,
    ContractError,
    LayerError,
    NonFiniteError,
    RunMismatchError,
)
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training import checkpoints
from aotoolkit.training.batch_size import largest_that_fits
from aotoolkit.training.checkpoints import writing
from aotoolkit.training.collator import ActivationCollator, OracleBatch
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.default_contract import default_contract
from aotoolkit.training.lora import check_adapted, lora_config, lora_targets
from aotoolkit.training.loss import answer_logits, oracle_loss
from aotoolkit.training.model_card import write_model_card
from aotoolkit.training.stream import BatchStream
from aotoolkit.training.validation import (
    ValidationFigures,
    figures_of,
    rounds_without_gain,
    score_examples,
)

if TYPE_CHECKING:
    from aotoolkit.data.mixture import BuiltMixture
    from aotoolkit.training.activation_cache import ActivationCache

ORACLE_ADAPTER = "oracle"
RUN_FILE = "run.json"
TRAINING_ROWS = "training.jsonl"
VALIDATION_ROWS = "validation.jsonl"
# As many examples stand for all when a run is compared with the one it continues.
_EXAMPLES_COMPARED = 256


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run.

    Attributes:
        oracle: the oracle of the best step, ready to be asked.
        folder: where it is saved, `output_dir/oracle`.
        metrics: held-out figures of that step; None without held-out examples.
        best_step: the step with the lowest held-out loss; the last without held-out examples.
    """

    oracle: Oracle
    folder: Path
    metrics: ValidationFigures | None
    best_step: int


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run is trained and scored on.

    Attributes:
        train: in training order.
        validation: held out; empty for none.
        manifest: one mapping for each source, for the contract.
        layers: all that the training examples read.
        several_layers: whether one of them reads several.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    manifest: tuple[Mapping[str, Any], ...]
    layers: tuple[int, ...]
    several_layers: bool

    @classmethod
    def of(
        cls,
        mixture: "BuiltMixture | Sequence[Example]",
        validation: Sequence[Example] | None = None,
        *,
        progress: bool = False,
    ) -> "TrainingData":
        """Looks through the examples once: which layers they read, how many of each source."""
        if isinstance(mixture, Sequence):
            train, held_out, manifest = mixture, (), ()
        else:
            train, held_out, manifest = mixture.train, mixture.validation, mixture.manifest
        counts: Counter[str] = Counter()
        chosen: set[tuple[int, ...]] = set()
        for example in tqdm(train, "examples", delay=2.0, leave=False, disable=not progress):
            counts[example.source] += 1
            chosen.add(example.layers)
        if not counts:
            raise ValueError("There are no examples to train on; give at least one.")
        counted = tuple({"name": name, "examples": counts[name]} for name in sorted(counts))
        return cls(
            train=train,
            validation=held_out if validation is None else validation,
            manifest=manifest or counted,
            layers=tuple(sorted({layer for layers in chosen for layer in layers})),
            several_layers=any(len(layers) > 1 for layers in chosen),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the number of examples and some of them, evenly spread."""
        count = len(self.train)
        step = max(1, count // _EXAMPLES_COMPARED)
        sha = hashlib.sha256(str(count).encode())
        for index in range(0, count, step):
            sha.update(repr(self.train[index]).encode())
        return sha.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """All that the trainer works with."""

    model: TracedModel
    data: TrainingData
    config: TrainingConfig
    contract: OracleContract
    collator: ActivationCollator
    block: nn.Module
    head: nn.Module
    steps: int

    @property
    def folder(self) -> Path:
        return self.config.output_dir

    def forward_loss(self, model: nn.Module, batch: OracleBatch) -> Tensor:
        """The batch's part of the global batch's loss. `injecting` must be open around it."""
        logits, labels = answer_logits(model, batch, block=self.block, head=self.head, inject=False)
        return oracle_loss(logits, labels, batch.num_label_tokens)


class _NamedBatches(IterableDataset):
    """A stream as the dictionaries that Trainer hands to `training_step`."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[dict[str, OracleBatch]]:
        for batch in self.stream:
            yield {"batch": batch}


class _Flow(TrainerCallback):
    """Epochs as they are for a stream, and a logged loss wherever there is a checkpoint.

    A run that goes on from a checkpoint begins its averages anew, so an unbroken one must too.
    """

    def __init__(self, run: _Run) -> None:
        self.run = run

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002  # Trainer hands it to every callback
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        state.num_train_epochs = math.ceil(self._epoch(self.run.steps))

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        state.epoch = self._epoch(state.global_step)
        control.should_log |= control.should_save or control.should_evaluate

    def _epoch(self, step: int) -> float:
        return step * self.run.config.batch_size / len(self.run.data.train)


class _OracleTrainer(Trainer):
    """Trainer whose batches carry an injection, and whose checkpoints are whole or not there."""

    def __init__(self, *args: Any, run: _Run, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.base_digest = run.model.base_digest
        self.figures: ValidationFigures | None = None

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        return DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            generator=torch.Generator(),  # else a resumed run would draw from the global one again
        )

    # One step

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: dict[str, OracleBatch], *_: Any, **__: Any
    ) -> Tensor:
        """Forward and backward of one piece of a batch; returns its part of the loss."""
        self._check_weights()
        batch = inputs["batch"].to(self.args.device)
        model.train()
        try:
            return self._forward_backward(model, batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Outside the except block, whose traceback keeps what the failed step had computed.
        raise self._too_large(batch)

    def _forward_backward(self, model: nn.Module, batch: OracleBatch) -> Tensor:
        with injecting(self.run.block, batch.injection):
            with self.compute_loss_context_manager():
                loss = self.run.forward_loss(model, batch)
            # Gradients are averaged over the processes; the loss is a sum over them.
            loss = loss * self.args.world_size
            self.accelerator.backward(loss)
        return loss.detach()

    def _check_weights(self) -> None:
        """The base is what it was, and the oracle's adapter is what is trained."""
        if self.is_fsdp_enabled:
            return  # sharded weights have no digest; they are frozen
        if self.run.model.base_digest != self.base_digest:
            raise AdapterStateError(
                f"The weights of the base changed during training (step {self.state.global_step}), "
                "so what is read from it is no longer the base's. Do not change or merge the "
                "model while an oracle is trained on it."
            )

    def _too_large(self, batch: OracleBatch) -> BatchTooLargeError:
        rows = len(batch)
        config = self.run.config
        if self.args.world_size > 1:
            # Trying smaller batches would wait for the other processes.
            fits = max(1, rows // 2)
            found = f"try {fits}"
        else:
            fits = largest_that_fits(self._probe, batch)
            found = f"{fits} fit" if fits else "not even one fits"
        steps = config.gradient_accumulation_steps * math.ceil(rows / max(1, fits))
        return BatchTooLargeError(
            f"Out of memory in step {self.state.global_step + 1}: {rows} examples at once do not "
            f"fit on {self.args.device}, {found}. Set gradient_accumulation_steps={steps} (the "
            "same result, in smaller pieces), a smaller batch_size, or "
            "gradient_checkpointing=True."
        )

    def _probe(self, batch: OracleBatch) -> None:
        """Forward and backward without a trace in the gradients."""
        assert self.model is not None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with injecting(self.run.block, batch.injection):
            with self.compute_loss_context_manager():
                loss = self.run.forward_loss(self.model, batch)
            torch.autograd.grad(loss, trained, allow_unused=True)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002  # Trainer's counts no batch of ours
        """Not counted."""
        return 0

    # Figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Writes a row of the training curve as well."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise NonFiniteError(
                    f"The training loss is {logs['loss']} at step {self.state.global_step}. Lower "
                    "the learning rate, or train in bfloat16 or float32 instead of float16."
                )
            if self.args.should_save:
                names = ("loss", "grad_norm", "learning_rate")
                row = {name: float(logs[name]) for name in names if name in logs}
                with writing(self.run.folder, "The training curve"):
                    checkpoints.append_row(
                        self.run.folder / TRAINING_ROWS, {"step": self.state.global_step, **row}
                    )
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scores the held-out examples, keeps the best weights, stops where nothing is gained."""
        run, examples = self.run, self.run.data.validation
        assert isinstance(self.model, nn.Module)
        # Under FSDP a forward needs all processes, so each scores everything.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        with self.compute_loss_context_manager():
            scores = score_examples(
                self.model,
                run.collator,
                examples,
                block=run.block,
                head=run.head,
                batch_size=run.config.batch_size,
                rank=self.args.process_index if shared else 0,
                world_size=self.args.world_size if shared else 1,
                progress=run.config.progress and self.is_world_process_zero(),
            )
        if shared:
            scores = {inject: gather_object(own) for inject, own in scores.items()}
        self.figures = figures_of(examples, scores)
        loss = self.figures.overall.loss
        step = self.state.global_step
        if self.state.best_metric is None or loss < self.state.best_metric:
            self._keep_best(loss)
        if self.args.should_save:
            with writing(run.folder, "The held-out figures"):
                checkpoints.append_row(
                    run.folder / VALIDATION_ROWS, {"step": step, **self.figures.to_dict()}
                )
        metrics = self.figures.curves()
        self.log(dict(metrics))
        if _out_of_patience(self.state, run.config):
            self.control.should_training_stop = True
            self.control.should_save = True
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, dict(metrics)
        )
        return metrics

    def _keep_best(self, loss: float) -> None:
        assert isinstance(self.model, nn.Module)
        step = self.state.global_step
        tensors = checkpoints.trainable_tensors(self.model)
        if self.args.should_save:
            with writing(self.run.folder, f"The best weights so far (step {step})"):
                staged = self.run.folder / checkpoints.STAGING / f"best-{step}"
                checkpoints.save_weights(tensors, staged)
                checkpoints.publish(staged, best_folder(self.run.folder, step))
        self.state.best_metric = loss
        self.state.best_global_step = step

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002  # as Trainer has it
        # Trainer writes its checkpoint here; it is moved when it is whole.
        return str(self.run.folder / checkpoints.STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        with writing(self.run.folder, name):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.finish(
                    Path(self._get_output_dir(trial)) / name,
                    self.run.folder / name,
                    keep=self.run.config.keep_checkpoints,
                )
                _forget_other_bests(self.run.folder, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the trained weights alone."""
        assert isinstance(self.model, nn.Module)
        assert output_dir is not None
        tensors = checkpoints.trainable_tensors(self.model)
        if self.args.should_save:
            checkpoints.save_weights(tensors, Path(output_dir))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        target = self.model if model is None else model
        assert isinstance(target, nn.Module)
        checkpoints.load_weights(target, Path(resume_from_checkpoint))


def train_oracle(
    model: TracedModel,
    mixture: "BuiltMixture | Sequence[Example]",
    config: TrainingConfig,
    *,
    contract: OracleContract | None = None,
    transform: VectorTransform | None = None,
    validation: Sequence[Example] | None = None,
    cache: "ActivationCache | None" = None,
) -> TrainingResult:
    """Trains an oracle, or goes on where a stopped run was.

    The model gets a new adapter `oracle`; without one it is left as it was when an error or an
    interrupt ends the run, and the same call goes on from the last checkpoint.

    Args:
        model: the base; it must have no adapter yet.
        mixture: what it is trained on, in training order; a built mixture has its own held-out
            examples.
        config: the run's settings.
        contract: how prompts are written and vectors injected; by default an Activation Oracle's
            for the layers that the examples read.
        transform: what is done to the vectors first; none by default.
        validation: held-out examples, scored with and without injection, in place of the
            mixture's own.
        cache: vectors read beforehand; by default they are read as training goes. FSDP needs one.

    Raises:
        ContractError: the contract is another base's, or does not fit the transform.
        LayerError: the examples read layers that the contract does not have.
        LoraTargetError: see `lora_targets`.
        RunMismatchError: the folder holds a run with other settings.
        CheckpointError: its checkpoints are all broken, or one cannot be written.
        BatchTooLargeError: out of memory; the message names the batch that fits.

    Warns:
        BrokenCheckpointWarning: the newest checkpoint is broken, an older one is used.
    """
    if model.adapter_names:
        raise ValueError(
            f"The model has the adapters {model.adapter_names}; an oracle is trained on a base "
            "without any. Load the base anew."
        )
    data = TrainingData.of(mixture, validation, progress=config.progress)
    transform = transform or VectorTransform()
    contract = resolve_contract(model, data, contract, transform)
    arguments = _arguments(model, data, config)
    folder = config.output_dir
    with _prepared(model, config):
        resumed = checkpoints.last_good(folder)
        start = checkpoints.checkpoint_step(resumed) if resumed else 0
        if arguments.should_save:
            _open_run(folder, data, config, contract, transform, start=start)
        collator = ActivationCollator(model, contract, transform, cache=cache)
        head = model.hf_model.get_output_embeddings()
        assert head is not None, "a causal LM has a head"
        run = _Run(
            model=model,
            data=data,
            config=config,
            contract=contract,
            collator=collator,
            block=model.blocks[contract.inject_layer],
            head=head,
            steps=config.steps(len(data.train)),
        )
        plain = ActivationCollator(model, contract, VectorTransform(), cache=cache)
        stream = BatchStream(
            collator,
            data.train,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            rank=arguments.process_index,
            world_size=arguments.world_size,
            accumulation_steps=config.gradient_accumulation_steps,
            warm_up_collator=plain,
            warm_up_steps=config.untransformed_steps,
        )
        trainer = _OracleTrainer(
            model=model.peft_model,
            args=arguments,
            train_dataset=_NamedBatches(stream),
            eval_dataset=data.validation or None,
            data_collator=lambda batch: batch,
            callbacks=_callbacks(run, arguments, start),
            run=run,
        )
        trainer.remove_callback(PrinterCallback)  # without a bar Trainer would print every row
        if trainer.is_fsdp_enabled and cache is None:
            raise ValueError(
                "Under FSDP the base's weights are in pieces, so activations cannot be read as "
                "training goes. Fill an activation cache first (`aotoolkit data cache RECIPE`) "
                "and pass it as cache."
            )
        step = _train(trainer, resumed)
        figures = _best_figures(run, step)
        oracle = _finished_oracle(run, transform, figures)
        target = folder / "oracle"
        if arguments.should_save:
            with writing(folder, "The oracle"):
                oracle.save_pretrained(target)
                write_model_card(target, oracle.contract, figures)
        trainer.accelerator.wait_for_everyone()
    return TrainingResult(oracle=oracle, folder=target, metrics=figures, best_step=step)


def resolve_contract(
    model: TracedModel,
    data: TrainingData,
    contract: OracleContract | None,
    transform: VectorTransform,
) -> OracleContract:
    """The contract of a run, with the base's digest and the data's manifest in it.

    Raises:
        ContractError, LayerError: see `train_oracle`.
    """
    if contract is None:
        contract = default_contract(
            model,
            read_layers=data.layers,
            several_layers=data.several_layers,
            transform=transform,
        )
    if contract.transform != transform.kind:
        raise ContractError(
            f"The contract says transform={contract.transform!r}, the transform given is "
            f"{transform.kind!r}. Pass the two that belong together."
        )
    if contract.base_digest not in (None, model.base_digest):
        raise ContractError(
            f"The contract is for a base with the digest {contract.base_digest}, the model's is "
            f"{model.base_digest}. Load the base that the contract names "
            f"({contract.base_model!r}), or leave base_digest out."
        )
    if contract.collection_adapter is not None:
        raise ContractError(
            f"The contract says that activations are read with the adapter "
            f"{contract.collection_adapter!r}; training reads them from the base alone. Set "
            "collection_adapter to None."
        )
    if unknown := sorted(set(data.layers) - set(contract.read_layers)):
        raise LayerError(
            f"Examples read the layers {unknown}, which are not among the contract's read_layers "
            f"{list(contract.read_layers)}. Add them to the contract, or leave the examples out."
        )
    return replace(
        contract,
        base_digest=model.base_digest,
        transform_digest=None if transform.kind == "none" else transform.digest,
        training_data=contract.training_data or data.manifest,
    )


def best_folder(run: Path, step: int) -> Path:
    """Where the weights of the best step so far are."""
    return run / f"best-{step}"


def _forget_other_bests(run: Path, best: int | None) -> None:
    """Deletes what no checkpoint needs any more; only after one knows of the new best."""
    for folder in run.glob("best-*"):
        if best is not None and folder != best_folder(run, best):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _prepared(model: TracedModel, config: TrainingConfig) -> Iterator[None]:
    """The model with a live, trainable adapter on a frozen base; as it was where that fails.

    Afterwards the adapter stays, frozen, and nothing else has changed.
    """
    hf_model: Any = model.hf_model
    flags = [(p, p.requires_grad) for p in hf_model.parameters()]
    use_cache = getattr(hf_model.config, "use_cache", None)
    if getattr(hf_model, "is_quantized", False):
        prepare_model_for_kbit_training(hf_model, use_gradient_checkpointing=False)
    hf_model.requires_grad_(False)
    set_seed(config.seed)
    targets = lora_targets(
        model, experts=config.lora_experts, routers=config.lora_routers, head=config.lora_head
    )
    try:
        model.add_adapter(ORACLE_ADAPTER, lora_config(model, config))
        check_adapted(model, ORACLE_ADAPTER, targets)
        if config.gradient_checkpointing:
            _checkpoint_gradients(hf_model, on=True)
        with model.using(ORACLE_ADAPTER):
            yield
    except BaseException:
        if ORACLE_ADAPTER in model.adapter_names:
            model.delete_adapter(ORACLE_ADAPTER)
        raise
    finally:
        hf_model.zero_grad()
        hf_model.requires_grad_(False)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if config.gradient_checkpointing:
            _checkpoint_gradients(hf_model, on=False)
        if use_cache is not None:
            hf_model.config.use_cache = use_cache
        if model.peft_model is not None:
            model.peft_model.eval()
        hf_model.eval()


def _checkpoint_gradients(hf_model: Any, *, on: bool) -> None:
    # transformers 5.2x renamed it; the old name warns.
    kind = "activation" if hasattr(hf_model, "activation_checkpointing_enable") else "gradient"
    if on:
        options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(hf_model, f"{kind}_checkpointing_enable")(**options)
    else:
        getattr(hf_model, f"{kind}_checkpointing_disable")()


def _arguments(model: TracedModel, data: TrainingData, config: TrainingConfig) -> TrainingArguments:
    steps = config.steps(len(data.train))
    on_cpu = model.device.type == "cpu"
    warmup = config.warmup_steps
    settings: dict[str, Any] = {
        "output_dir": str(config.output_dir),
        "max_steps": steps,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": int(warmup * steps) if warmup < 1 else int(warmup),
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if data.validation else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "report_to": [name for name in config.report_to if name != "tensorboard"],
        "disable_tqdm": not config.progress,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "seed": config.seed,
        "bf16": config.bf16,
        "use_cpu": on_cpu,
        # Experts that no token of a batch was routed to have no gradient.
        "ddp_find_unused_parameters": bool(lora_targets(model).parameters),
    }
    arguments = TrainingArguments(**(settings | dict(config.extra_arguments)))
    # Several processes are started by a launcher; one process uses one device.
    arguments._n_gpu = min(1, arguments.n_gpu)
    pieces = arguments.world_size * config.gradient_accumulation_steps
    if config.batch_size % pieces:
        raise ValueError(
            f"batch_size is {config.batch_size}, which does not divide among "
            f"{arguments.world_size} processes and {config.gradient_accumulation_steps} "
            f"accumulation steps; choose a multiple of {pieces}."
        )
    arguments.per_device_train_batch_size = config.batch_size // pieces
    return arguments


def _callbacks(run: _Run, arguments: TrainingArguments, start: int) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [_Flow(run)]
    if "tensorboard" in run.config.report_to and arguments.should_save:
        from torch.utils.tensorboard import SummaryWriter

        # What was written of steps that are run again is purged.
        writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=start + 1 if start else None
        )
        callbacks.append(TensorBoardCallback(writer))
    return callbacks


def _open_run(
    folder: Path,
    data: TrainingData,
    config: TrainingConfig,
    contract: OracleContract,
    transform: VectorTransform,
    *,
    start: int,
) -> None:
    """Makes the folder, or checks that it holds a run with the same settings.

    Raises:
        RunMismatchError: see `train_oracle`.
    """
    wanted = {
        **config.binding(),
        "contract": contract.digest,
        "transform": transform.digest,
        "examples": data.digest,
    }
    wanted = json.loads(json.dumps(wanted, default=str))
    path = folder / RUN_FILE
    if start and path.is_file():
        found = json.loads(path.read_text())
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if different:
            listed = "; ".join(
                f"{name} was {found.get(name)!r} and is now {wanted[name]!r}" for name in different
            )
            raise RunMismatchError(
                f"{folder} holds a run with other settings: {listed}. Start it with its own, or "
                "choose another output_dir."
            )
    with writing(folder, "The run's settings"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / checkpoints.STAGING, ignore_errors=True)
        checkpoints.write_json(path, wanted)
        for name in (TRAINING_ROWS, VALIDATION_ROWS):
            checkpoints.keep_rows(folder / name, start)


def _train(trainer: _OracleTrainer, resumed: Path | None) -> int:
    """Trains to the end and loads the best weights; returns their step."""
    run = trainer.run
    state = TrainerState()
    if resumed is not None:
        state = TrainerState.load_from_json(str(resumed / "trainer_state.json"))
    if state.global_step >= run.steps or _out_of_patience(state, run.config):
        # Trainer would run one step more.
        assert resumed is not None
        trainer._load_from_checkpoint(str(resumed))
    else:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        state = trainer.state
    best = state.best_global_step
    if best and run.data.validation:
        assert isinstance(trainer.model, nn.Module)
        if best != state.global_step:
            checkpoints.load_weights(trainer.model, best_folder(run.folder, best))
        return best
    return state.global_step


def _out_of_patience(state: TrainerState, config: TrainingConfig) -> bool:
    losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
    patience = config.early_stopping_patience
    return patience is not None and rounds_without_gain(losses) >= patience


def _best_figures(run: _Run, step: int) -> ValidationFigures | None:
    rows = checkpoints.read_rows(run.folder / VALIDATION_ROWS) if run.data.validation else []
    return next((ValidationFigures.from_dict(row) for row in rows if row["step"] == step), None)


def _finished_oracle(
    run: _Run, transform: VectorTransform, figures: ValidationFigures | None
) -> Oracle:
    extra = dict(run.contract.extra)
    if figures is not None:
        extra["validation"] = figures.to_dict()
    contract = replace(
        run.contract,
        lora_rank=run.config.lora_rank,
        lora_alpha=run.config.lora_alpha,
        rslora=run.config.rslora,
        extra=extra,
    )
    return Oracle(run.model, ORACLE_ADAPTER, contract, transform=transform)
