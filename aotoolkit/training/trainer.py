"""Training an oracle with transformers.Trainer: LoRA on the base, activations of the base only.

Vectors are injected by a hook on a block inside the model's own forward, which is open until the
backward pass is done: so it works under DistributedDataParallel, under FSDP and with gradient
checkpointing, where the block runs again in the backward pass.

The loss of a step is the summed cross-entropy over the number of answer tokens of the *global*
batch. That is the same number however the batch is cut into processes and accumulation steps.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from aotoolkit.data.example import Example
from aotoolkit.errors import (
    AdapterStateError,
    BatchTooLargeError,
    CheckpointError,
    NonFiniteError,
    RunMismatchError,
    TrainingSettingsError,
)
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.injection import injecting
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.tracing.lora_targets import lora_targets
from aotoolkit.training import checkpoints
from aotoolkit.training.batch_size import largest_that_fits
from aotoolkit.training.checkpoints import writing
from aotoolkit.training.collator import OracleBatch
from aotoolkit.training.config import TrainingConfig, check_reporting
from aotoolkit.training.model_card import write_model_card
from aotoolkit.training.run import ORACLE_ADAPTER, FrozenWeights, Run, prepared_model
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

RUN_FILE = "run.json"
TRAINING_ROWS = "training.jsonl"
VALIDATION_ROWS = "validation.jsonl"
STATE_FILE = "trainer_state.json"
# A network disk may show a new file to other machines so many seconds later.
SHARED_FOLDER_DELAY = 60.0


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

    def __init__(self, run: Run) -> None:
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
        # Early versions of transformers 5 do not evaluate at the last step by themselves.
        ended = state.global_step >= self.run.steps
        control.should_evaluate |= ended and bool(self.run.data.validation)
        control.should_log |= control.should_save or control.should_evaluate

    def _epoch(self, step: int) -> float:
        return step * self.run.config.batch_size / len(self.run.data.train)


class _OracleTrainer(Trainer):
    """Trainer whose batches carry an injection, and whose checkpoints are whole or not there."""

    def __init__(self, *args: Any, run: Run, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.frozen = FrozenWeights(run.model.hf_model)
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
        # Under FSDP each forward needs all processes, which may have other numbers of pieces.
        whole = self.is_fsdp_enabled
        pieces = [batch] if whole else batch.split(self.run.config.tokens_per_pass)
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            apart = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with apart:
                total += self._forward_backward(model, piece)
        return total

    def _forward_backward(self, model: nn.Module, batch: OracleBatch) -> Tensor:
        try:
            with injecting(self.run.block, batch.injection):
                with self.compute_loss_context_manager():
                    loss = self.run.loss(model, batch)
                # Gradients are averaged over the processes; the loss is a sum over them.
                loss = loss * self.args.world_size
                self.accelerator.backward(loss)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        else:
            return loss.detach()
        # Outside the except block, whose traceback keeps what the failed pass had computed.
        raise self._too_large(batch)

    def _check_weights(self) -> None:
        """The base, whose activations are read, is what it was."""
        # Under FSDP they are in pieces, and what is read was cached before.
        if not self.is_fsdp_enabled and self.frozen.changed():
            raise AdapterStateError(
                f"The weights of the base changed during training (step {self.state.global_step}), "
                "so what is read from it is no longer the base's. Do not change or merge the "
                "model while an oracle is trained on it."
            )

    def _too_large(self, batch: OracleBatch) -> BatchTooLargeError:
        rows, length = batch.input_ids.shape
        if self.args.world_size > 1:
            # Trying smaller batches would wait for the other processes.
            fits, found = max(1, rows // 2), "and smaller ones were not tried"
        else:
            fits = largest_that_fits(self._probe, batch)
            found = f"{fits} fit" if fits else "not even one fits"
        advice = "Set gradient_checkpointing=True, or leave out the longest prompts"
        if fits and self.is_fsdp_enabled:
            advice = "Set a larger gradient_accumulation_steps, or gradient_checkpointing=True"
        elif fits:
            advice = f"Set tokens_per_pass={fits * length}, or gradient_checkpointing=True"
        return BatchTooLargeError(
            f"Out of memory in step {self.state.global_step + 1}: {rows} examples of up to "
            f"{length} tokens at once do not fit on {self.args.device}, {found}. {advice}."
        )

    def _probe(self, batch: OracleBatch) -> None:
        assert isinstance(self.model, nn.Module)
        with self.compute_loss_context_manager():
            self.run.probe(self.model, batch)

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
                tokens_per_pass=run.config.tokens_per_pass,
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
                staged = Path(self._get_output_dir(trial)) / name
                # Trainer means the staged folder, which is gone when it looks for it on resuming.
                self.state.best_model_checkpoint = None
                self.state.save_to_json(str(staged / STATE_FILE))
                checkpoints.finish(
                    staged,
                    self.run.folder / name,
                    keep=self.run.config.keep_checkpoints,
                )
                _forget_other_bests(self.run.folder)
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
        ActivationCacheError: the cache is of another base, or lacks what an example reads.
        TrainingSettingsError: settings that transformers refuses, that do not fit the number of
            processes, or a service of `report_to` that cannot be reached.
        RunMismatchError: the folder holds a run with other settings.
        CheckpointError: its checkpoints are all broken, or one cannot be written; or the processes
            do not see the same folder.
        BatchTooLargeError: out of memory; the message names the batch that fits.

    Warns:
        BrokenCheckpointWarning: the newest checkpoint is broken, an older one is used.
    """
    run = Run.of(
        model,
        mixture,
        config,
        contract=contract,
        transform=transform,
        validation=validation,
        cache=cache,
    )
    arguments = _arguments(run)
    if arguments.should_save:
        check_reporting(config)
    with prepared_model(model, config):
        resumed = _resume_from(run, arguments)
        start = checkpoints.checkpoint_step(resumed) if resumed else 0
        if arguments.should_save:
            _open_run(run, start=start)
        _check_shared(run, arguments)
        stream = run.stream(
            start=start, rank=arguments.process_index, world_size=arguments.world_size
        )
        trainer = _OracleTrainer(
            model=model.peft_model,
            args=arguments,
            train_dataset=_NamedBatches(stream),
            eval_dataset=run.data.validation or None,
            data_collator=lambda batch: batch,
            callbacks=_callbacks(run, arguments, start),
            run=run,
        )
        trainer.remove_callback(PrinterCallback)  # without a bar Trainer would print every row
        if trainer.is_fsdp_enabled and cache is None:
            raise TrainingSettingsError(
                "Under FSDP the base's weights are in pieces, so activations cannot be read as "
                "training goes. Fill an activation cache first (`aotoolkit data cache RECIPE`) "
                "and pass it as cache."
            )
        step = _train(trainer, resumed)
        figures = _best_figures(run, step)
        oracle = _finished_oracle(run, figures)
        target = run.folder / "oracle"
        if arguments.should_save:
            with writing(run.folder, "The oracle"):
                oracle.save_pretrained(target)
                write_model_card(target, oracle.contract, figures)
        trainer.accelerator.wait_for_everyone()
    return TrainingResult(oracle=oracle, folder=target, metrics=figures, best_step=step)


def best_folder(run: Path, step: int) -> Path:
    """Where the weights of the best step so far are."""
    return run / f"best-{step}"


def _forget_other_bests(run: Path) -> None:
    """Deletes the best weights that no checkpoint names, so that each can be gone on from."""
    needed = set()
    for folder in checkpoints.checkpoints(run):
        with contextlib.suppress(OSError, ValueError):  # a broken one is not gone on from
            needed.add(_state_of(folder).best_global_step)
    for folder in run.glob("best-*"):
        if folder not in {best_folder(run, step) for step in needed if step}:
            shutil.rmtree(folder)


def _state_of(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / STATE_FILE))


def _arguments(run: Run) -> TrainingArguments:
    config, steps = run.config, run.steps
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
        "eval_strategy": "steps" if run.data.validation else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "report_to": [name for name in config.report_to if name != "tensorboard"],
        "disable_tqdm": not config.progress,
        "remove_unused_columns": False,
        "ignore_data_skip": True,
        "seed": config.seed,
        "bf16": config.bf16,
        "use_cpu": run.model.device.type == "cpu",
        # Experts that no token of a batch was routed to have no gradient.
        "ddp_find_unused_parameters": bool(lora_targets(run.model).parameters),
    }
    try:
        arguments = TrainingArguments(**(settings | dict(config.extra_arguments)))
    except (ValueError, TypeError) as error:
        raise TrainingSettingsError(
            f"transformers refuses the settings of the run: {error} Look at extra_arguments "
            f"({dict(config.extra_arguments)})."
        ) from error
    # Several processes are started by a launcher; one process uses one device.
    arguments._n_gpu = min(1, arguments.n_gpu)
    pieces = arguments.world_size * config.gradient_accumulation_steps
    if config.batch_size % pieces:
        raise TrainingSettingsError(
            f"batch_size is {config.batch_size}, which does not divide among "
            f"{arguments.world_size} processes and {config.gradient_accumulation_steps} "
            f"accumulation steps; choose a multiple of {pieces}."
        )
    arguments.per_device_train_batch_size = config.batch_size // pieces
    return arguments


def _callbacks(run: Run, arguments: TrainingArguments, start: int) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [_Flow(run)]
    if "tensorboard" in run.config.report_to and arguments.should_save:
        from torch.utils.tensorboard import SummaryWriter

        # What was written of steps that are run again is purged.
        writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=start + 1 if start else None
        )
        callbacks.append(TensorBoardCallback(writer))
    return callbacks


def _resume_from(run: Run, arguments: TrainingArguments) -> Path | None:
    """The checkpoint that all processes go on from; None where there is none.

    Raises:
        CheckpointError: all are broken, the best weights that the last names are gone, or the
            processes, on machines with folders of their own, do not find the same.
    """
    resumed, found = None, "no checkpoint"
    try:
        resumed = checkpoints.last_good(run.folder)
        if resumed is not None:
            best = _state_of(resumed).best_global_step
            if run.data.validation and best and not best_folder(run.folder, best).is_dir():
                raise CheckpointError(
                    f"{resumed} needs the best weights so far, and {best_folder(run.folder, best)} "
                    f"is not there. Restore it, or delete {resumed.name} to go on from an earlier "
                    "checkpoint."
                )
            found = resumed.name
    except CheckpointError as error:
        # Raised below by all, so that none waits for one that has ended.
        found = str(error)
    everywhere = _of_all_processes(found, arguments)
    if len(set(everywhere)) > 1:
        listed = "; ".join(f"process {rank}: {what}" for rank, what in enumerate(everywhere))
        raise CheckpointError(f"{_not_shared(run.folder)} They find: {listed}.")
    if resumed is None and found != "no checkpoint":
        raise CheckpointError(found)
    return resumed


def _check_shared(run: Run, arguments: TrainingArguments) -> None:
    """Notices before the first step that a process does not see what the first has written."""
    if arguments.world_size == 1:
        return
    _of_all_processes(None, arguments)  # the first has opened the run
    path = run.folder / RUN_FILE
    until = time.monotonic() + SHARED_FOLDER_DELAY
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    blind = [
        rank for rank, sees in enumerate(_of_all_processes(path.is_file(), arguments)) if not sees
    ]
    if blind:
        raise CheckpointError(
            f"{_not_shared(run.folder)} The processes {blind} do not see the {RUN_FILE} that the "
            "first has written."
        )


def _of_all_processes(value: Any, arguments: TrainingArguments) -> list[Any]:
    return [value] if arguments.world_size == 1 else gather_object([value])


def _not_shared(folder: Path) -> str:
    return (
        f"The processes do not see the same {folder.absolute()}. Checkpoints are written by the "
        "first and read by all, so give an output_dir on a disk that all machines share."
    )


def _open_run(run: Run, *, start: int) -> None:
    """Makes the folder, or checks that it holds a run with the same settings.

    Raises:
        RunMismatchError: see `train_oracle`.
    """
    wanted = {
        **run.config.binding(),
        "contract": run.contract.digest,
        "transform": run.transform.digest,
        "examples": run.data.train_digest,
        "validation": run.data.validation_digest,
    }
    wanted = json.loads(json.dumps(wanted, default=str))
    folder = run.folder
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
        state = _state_of(resumed)
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


def _best_figures(run: Run, step: int) -> ValidationFigures | None:
    rows = checkpoints.read_rows(run.folder / VALIDATION_ROWS) if run.data.validation else []
    return next((ValidationFigures.from_dict(row) for row in rows if row["step"] == step), None)


def _finished_oracle(run: Run, figures: ValidationFigures | None) -> Oracle:
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
    return Oracle(run.model, ORACLE_ADAPTER, contract, transform=run.transform)
