"""Training vectors that hold something else besides, as those of a fine-tuned model do.

An oracle is trained on activations of its base alone. What fine-tuning adds to a model does not
only hold what it was fine-tuned to hide: it moves every vector, in directions that the base's own
texts never take together with an answer, and an oracle that has always seen clean vectors says
whatever of its training lies in that direction (docs/nano.md has what was measured). So a part of
another example's mean is added, and the answer stays that of the example: what counts is what is
strongest in the vectors. The nearest published method is mixup (arXiv:1710.09412), which would mix
the answers as well.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from aotoolkit.data.example import Example
from aotoolkit.training.collator import ActivationCollator

# Examples whose means are added.
POOL_SIZE = 512


class Distraction:
    """Adds a part of another example's mean to the vectors of an example.

    Args:
        collator: reads the vectors, and transforms them as those that are trained on.
        examples: where the others come from, evenly over all.
        most: the largest part, in units of each vector's own length.
        num_steps: over which the largest part grows from nothing to `most`: reading is learned
            from clean vectors first.
        seed: of what is added to which.
    """

    def __init__(
        self,
        collator: ActivationCollator,
        examples: Sequence[Example],
        *,
        most: float,
        num_steps: int,
        seed: int,
    ) -> None:
        self.most = most
        self.num_steps = num_steps
        self.seed = seed
        count = min(POOL_SIZE, len(examples))
        chosen = [examples[index * len(examples) // count] for index in range(count)]
        chosen = [example for example in chosen if example.evidence == "read"]
        found: dict[int, list[Tensor]] = {}
        for example, vectors in zip(chosen, collator.vectors(chosen), strict=True):
            by_layer = vectors.unflatten(0, (len(example.layers), -1))
            for layer, mean in zip(example.layers, by_layer.mean(1), strict=True):
                if bool(mean.norm() > 0):
                    found.setdefault(layer, []).append(mean / mean.norm())
        self._directions = {layer: torch.stack(rows) for layer, rows in found.items()}

    def added(
        self, example: Example, vectors: Float[Tensor, "n d"], *, step: int, row: int
    ) -> Float[Tensor, "n d"]:
        """The vectors, distracted; those that were not read, but made, as they are.

        Args:
            example: whose they are.
            vectors: `l*p d`, layer by layer.
            step: the optimiser step they are for.
            row: their place in its global batch; with `step` it decides what is added.
        """
        if example.evidence != "read":
            return vectors
        rng = random.Random(f"{self.seed}/distraction/{step}/{row}")
        part = rng.random() * self.most * min(1.0, step / self.num_steps)
        changed = vectors.unflatten(0, (len(example.layers), -1)).clone()
        for index, layer in enumerate(example.layers):
            directions = self._directions.get(layer)
            if directions is not None:
                lengths = changed[index].norm(dim=-1, keepdim=True)
                changed[index] += part * lengths * directions[rng.randrange(len(directions))]
        return changed.flatten(0, 1)
