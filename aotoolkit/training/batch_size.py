"""Which part of a batch fits into memory, found by trying."""

import gc
from collections.abc import Callable

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from aotoolkit.training.collator import OracleBatch


def largest_that_fits(run: Callable[[OracleBatch], None], batch: OracleBatch) -> int:
    """How many rows of a batch `run` has memory for, by halving; 0 where not even one fits."""
    count, length = batch.input_ids.shape
    while count:
        gc.collect()
        clear_device_cache()
        pieces = batch.split(count * length)
        if fits(run, max(pieces, key=lambda piece: piece.input_ids.numel())):
            return count
        count //= 2
    return 0


def fits(run: Callable[[OracleBatch], None], batch: OracleBatch) -> bool:
    """Whether `run` has memory for a batch, at the cost of nothing but that run."""
    try:
        run(batch)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    return True
