"""An endless stream of batches, that can be entered anywhere.

The base's activations are read for a *window* of several batches at once: switching the oracle's
adapter off and on costs as much as a small forward, examples that share a context share its pass,
and within a window batches can be made of prompts of like length. A window is a function of
(examples, seed, index) alone, so a run that was stopped goes on at any step without replaying the
ones before it, and every process of a distributed run makes the same windows and takes its rows.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import IterableDataset

from aotoolkit.data.example import Example
from aotoolkit.errors import TrainingSettingsError
from aotoolkit.oracle.prompt import IGNORED_LABEL
from aotoolkit.training.collator import ActivationCollator, OracleBatch


class BatchStream(IterableDataset):
    """Batches of `examples`, over and over.

    The first pass over the examples goes in their own order (that of a `Mixture` is its
    curriculum), each later pass in an order of its own: stretches of a window's size, shuffled, so
    that examples which share a context stay together. Within a window the examples are shuffled,
    cut into batches of like length, and the batches shuffled.

    Args:
        collator: makes the batches.
        examples: in training order.
        batch_size: rows of a global batch, those of all processes and accumulation steps together.
        seed: of the whole stream.
        start: the first step to give, when a run is resumed.
        window: batches made at once; fewer where the examples do not fill so many.
        rank: which process this is.
        world_size: of how many.
        accumulation_steps: each global batch comes in so many pieces, one after the other.
        warm_up_collator: makes the batches of the first `warm_up_steps` instead.
        warm_up_steps: how many steps those are.

    Raises:
        TrainingSettingsError: no examples, or a batch that does not divide among processes and
            pieces.
    """

    def __init__(
        self,
        collator: ActivationCollator,
        examples: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        window: int = 16,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        warm_up_collator: ActivationCollator | None = None,
        warm_up_steps: int = 0,
    ) -> None:
        if not len(examples):
            raise TrainingSettingsError("There are no examples to train on; give at least one.")
        pieces = world_size * accumulation_steps
        if batch_size < 1 or batch_size % pieces:
            raise TrainingSettingsError(
                f"batch_size is {batch_size}, which does not divide among {world_size} processes "
                f"and {accumulation_steps} accumulation steps; choose a multiple of {pieces}."
            )
        if not 0 <= rank < world_size:
            raise TrainingSettingsError(
                f"rank is {rank}; with {world_size} processes it is 0 to that less 1."
            )
        self.collator = collator
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        # More than one pass in a window would put copies of one example side by side.
        self.window = max(1, min(window, len(examples) // batch_size))
        self.rank = rank
        self.world_size = world_size
        self.accumulation_steps = accumulation_steps
        self.warm_up_collator = warm_up_collator or collator
        self.warm_up_steps = warm_up_steps
        self._order: tuple[int, list[int]] = (-1, [])

    def window_indices(self, index: int) -> list[int]:
        """Which examples a window holds: the next `window * batch_size` of pass after pass."""
        size = self.window * self.batch_size
        indices: list[int] = []
        while len(indices) < size:
            number, offset = divmod(index * size + len(indices), len(self.examples))
            indices += self._pass(number)[offset : offset + size - len(indices)]
        return indices

    def _pass(self, number: int) -> list[int]:
        """The order of the examples in one pass."""
        if self._order[0] != number:
            count, size = len(self.examples), self.window * self.batch_size
            order = list(range(count))
            if number > 0:
                rng = random.Random(f"{self.seed}/pass/{number}")
                # Stretches that begin elsewhere each time, so that windows mix differently.
                starts = [0, *range(rng.randrange(1, size + 1), count, size), count]
                stretches = [order[a:b] for a, b in itertools.pairwise(starts)]
                rng.shuffle(stretches)
                order = list(itertools.chain.from_iterable(stretches))
            self._order = (number, order)
        return self._order[1]

    def window_batches(self, index: int) -> list[list[OracleBatch]]:
        """One window: for each of its steps the batches of this process, one a piece.

        A function of the examples, the seed and `index` alone.
        """
        rng = random.Random(f"{self.seed}/window/{index}")
        examples = [self.examples[i] for i in self.window_indices(index)]
        rng.shuffle(examples)
        prompts = [self.collator.prompt(example) for example in examples]
        # Stable: among prompts of one length the order stays shuffled, and contexts apart.
        order = sorted(range(len(examples)), key=lambda i: len(prompts[i].token_ids))
        size = self.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rng.shuffle(batches)
        own = size // self.world_size
        mine = [batch[self.rank * own : (self.rank + 1) * own] for batch in batches]
        warm = min(max(self.warm_up_steps - index * self.window, 0), self.window)
        vectors: dict[int, Tensor] = {}
        for collator, steps in ((self.warm_up_collator, mine[:warm]), (self.collator, mine[warm:])):
            wanted = list(itertools.chain.from_iterable(steps))
            read = collator.vectors([examples[i] for i in wanted])
            vectors |= zip(wanted, read, strict=True)
        piece = own // self.accumulation_steps
        result = []
        for batch, rows in zip(batches, mine, strict=True):
            labels = itertools.chain.from_iterable(prompts[i].labels for i in batch)
            num_label_tokens = sum(label != IGNORED_LABEL for label in labels)
            pieces = [rows[start : start + piece] for start in range(0, own, piece)]
            result.append(
                [
                    self.collator.batch(
                        [examples[i] for i in chosen],
                        [prompts[i] for i in chosen],
                        [vectors[i] for i in chosen],
                        num_label_tokens=num_label_tokens,
                    )
                    for chosen in pieces
                ]
            )
        return result

    def __iter__(self) -> Iterator[OracleBatch]:
        """This process's batches, from step `start` on, without end."""
        index, skip = divmod(self.start, self.window)
        while True:
            for pieces in self.window_batches(index)[skip:]:
                yield from pieces
            index, skip = index + 1, 0
