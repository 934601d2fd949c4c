"""How long a run will take and how much memory, from a few timed steps, before it starts."""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from aotoolkit.data.example import Example
from aotoolkit.errors import BatchTooLargeError, TrainingSettingsError
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.tracing import TracedModel
from aotoolkit.training.batch_size import fits, largest_that_fits
from aotoolkit.training.collator import OracleBatch
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.run import Run, prepared_model
from aotoolkit.training.validation import score_examples

if TYPE_CHECKING:
    from aotoolkit.data.mixture import BuiltMixture
    from aotoolkit.training.activation_cache import ActivationCache

# Among so many examples, evenly spread, the longest are looked for.
EXAMPLES_SEARCHED = 1000
# Adapter and optimiser: the weight, its gradient and two moments, in float32.
BYTES_PER_TRAINED_PARAMETER = 16
# A checkpoint has no gradients.
BYTES_PER_SAVED_PARAMETER = 12
STEPS = 4


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """What a run will take, on one process and this machine.

    Attributes:
        steps: optimiser steps of the run.
        step_seconds: median time of one, without reading activations.
        reading_seconds: time a step to read activations of the base.
        validation_seconds: time of all validations together.
        total_seconds: of the whole run.
        examples_per_second: of training, reading included.
        tokens_per_second: of the oracle's prompts and answers, reading included.
        trained_parameters: of the adapter.
        peak_bytes: most memory that training takes: on an accelerator what torch has allocated, on
            the CPU the whole process.
        available_bytes: what the device has, or on the CPU the machine.
        checkpoint_bytes: size of one checkpoint on disk.
        device: where it was measured.
    """

    steps: int
    step_seconds: float
    reading_seconds: float
    validation_seconds: float
    total_seconds: float
    examples_per_second: float
    tokens_per_second: float
    trained_parameters: int
    peak_bytes: int
    available_bytes: int
    checkpoint_bytes: int
    device: str

    def render(self, console: Console) -> None:
        """Prints a table."""
        table = Table(title="Estimate of the run, on one process", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in (
            ("steps", f"{self.steps:,}"),
            ("time a step", f"{self.step_seconds:.2f} s"),
            ("  and to read activations", f"{self.reading_seconds:.2f} s"),
            ("validation, all together", _duration(self.validation_seconds)),
            ("whole run", _duration(self.total_seconds)),
            ("examples a second", f"{self.examples_per_second:,.1f}"),
            ("tokens a second", f"{self.tokens_per_second:,.0f}"),
            ("trained parameters", f"{self.trained_parameters:,}"),
            (f"peak memory, {self.device}", _size(self.peak_bytes)),
            ("  of", _size(self.available_bytes)),
            ("a checkpoint on disk", _size(self.checkpoint_bytes)),
        ):
            table.add_row(name, value)
        console.print(table)


def estimate(
    model: TracedModel,
    mixture: "BuiltMixture | Sequence[Example]",
    config: TrainingConfig,
    *,
    contract: OracleContract | None = None,
    transform: VectorTransform | None = None,
    validation: Sequence[Example] | None = None,
    cache: "ActivationCache | None" = None,
    steps: int = STEPS,
) -> TrainingEstimate:
    """Times a few steps of a run and one of its longest; nothing is written or kept.

    Args:
        model: as for `train_oracle`, and so are the others.
        mixture: what the run trains on.
        config: the run's settings.
        contract: default: an Activation Oracle's.
        transform: default: none.
        validation: default: the mixture's own.
        cache: default: activations are read.
        steps: steps to time; the first is a warm-up and does not count.

    Raises:
        BatchTooLargeError: out of memory; the message names what fits.
        Others: as `train_oracle`.
    """
    if steps < 2:
        raise TrainingSettingsError(f"steps is {steps}; the first is a warm-up, so give 2 or more.")
    run = Run.of(
        model,
        mixture,
        config,
        contract=contract,
        transform=transform,
        validation=validation,
        cache=cache,
    )
    with prepared_model(model, config, keep=False):
        return _measured(run, steps)


def _measured(run: Run, steps: int) -> TrainingEstimate:
    config, device = run.config, run.model.device
    trained = sum(p.numel() for p in run.model.hf_model.parameters() if p.requires_grad)
    on_accelerator = device.type != "cpu"
    if on_accelerator:
        torch.accelerator.reset_peak_memory_stats(device)
    _step(run, _longest(run))
    begin = time.perf_counter()
    window = run.stream(window=steps).window_batches(0)
    batches = [batch for pieces in window for batch in pieces]
    _synchronise(device)
    count = len(window)
    reading = (time.perf_counter() - begin) / count
    seconds = []
    for batch in tqdm(batches, "timed steps", leave=False, disable=not config.progress):
        begin = time.perf_counter()
        _step(run, batch)
        _synchronise(device)
        seconds.append(time.perf_counter() - begin)
    accumulation = config.gradient_accumulation_steps
    step = accumulation * statistics.median(seconds[1:] or seconds)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches) / count
    validating = _validation_seconds(run)
    return TrainingEstimate(
        steps=run.steps,
        step_seconds=step,
        reading_seconds=reading,
        validation_seconds=validating,
        total_seconds=run.steps * (step + reading) + validating,
        examples_per_second=config.batch_size / (step + reading),
        tokens_per_second=tokens / (step + reading),
        trained_parameters=trained,
        peak_bytes=_peak_bytes(device) + (BYTES_PER_TRAINED_PARAMETER - 4) * trained,
        available_bytes=_available_bytes(device),
        checkpoint_bytes=BYTES_PER_SAVED_PARAMETER * trained,
        device=str(device),
    )


def _step(run: Run, batch: OracleBatch) -> None:
    """Forward and backward; out of memory names what fits."""
    peft_model = run.model.peft_model
    assert peft_model is not None, "the model is prepared"
    device = run.model.device.type

    def probe(batch: OracleBatch) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=run.config.bf16):
            run.probe(peft_model, batch)

    peft_model.train()
    for piece in batch.split(run.config.tokens_per_pass):
        if fits(probe, piece):
            continue
        rows, length = piece.input_ids.shape
        found = largest_that_fits(probe, piece)
        if found < rows:
            advice = "not even one fits. Set gradient_checkpointing=True, or read fewer positions"
            if found:
                advice = f"{found} fit. Set tokens_per_pass={found * length}"
            raise BatchTooLargeError(
                f"{rows} examples of up to {length} tokens at once do not fit on "
                f"{run.model.device}: {advice}."
            )


def _longest(run: Run) -> OracleBatch:
    """A batch of the longest prompts among some of the examples."""
    examples = run.data.train
    stride = max(1, len(examples) // EXAMPLES_SEARCHED)
    found = [examples[index] for index in range(0, len(examples), stride)]
    found.sort(key=lambda example: -len(run.collator.prompt(example).token_ids))
    size = run.config.batch_size // run.config.gradient_accumulation_steps
    return run.collator(found[: max(1, size)])


def _validation_seconds(run: Run) -> float:
    """Time of all validations, from one batch."""
    examples = run.data.validation
    if not examples:
        return 0.0
    some = examples[: run.config.batch_size]
    assert run.model.peft_model is not None, "the model is prepared"
    begin = time.perf_counter()
    score_examples(
        run.model.peft_model,
        run.collator,
        some,
        block=run.block,
        head=run.head,
        batch_size=run.config.batch_size,
        tokens_per_pass=run.config.tokens_per_pass,
    )
    one = (time.perf_counter() - begin) * len(examples) / len(some)
    return one * max(1, run.steps // run.config.eval_steps)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
