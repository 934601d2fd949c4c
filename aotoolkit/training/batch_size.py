"""Which part of a batch fits into memory, found by trying."""

import dataclasses
import gc
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from aotoolkit.training.collator import OracleBatch


def first_rows(batch: OracleBatch, count: int) -> OracleBatch:
    """The first rows of a batch."""
    injected = batch.injection.rows < count
    answers = batch.answer_rows < count
    rows = {
        name: None if (tensor := getattr(batch, name)) is None else tensor[:count]
        for name in ("input_ids", "attention_mask", "position_ids", "labels")
    }
    return dataclasses.replace(
        batch,
        **rows,
        answer_rows=batch.answer_rows[answers],
        answer_cols=batch.answer_cols[answers],
        injection=dataclasses.replace(
            batch.injection,
            vectors=batch.injection.vectors[injected.to(batch.injection.vectors.device)],
            rows=batch.injection.rows[injected],
            cols=batch.injection.cols[injected],
        ),
        sources=batch.sources[:count],
    )


def largest_that_fits(run: Callable[[OracleBatch], None], batch: OracleBatch) -> int:
    """How many rows of a batch `run` has memory for, by halving; 0 where not even one fits."""
    count = len(batch)
    while count:
        gc.collect()
        clear_device_cache()
        if _fits(run, first_rows(batch, count)):
            return count
        count //= 2
    return 0


def _fits(run: Callable[[OracleBatch], None], batch: OracleBatch) -> bool:
    try:
        run(batch)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    return True
