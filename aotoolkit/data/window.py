"""Which positions near the end of a context are read."""

import random
from dataclasses import dataclass

from aotoolkit.errors import DataError

Bounds = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Contiguous positions that end near the end of a context; both sizes drawn uniformly.

    Attributes:
        width: fewest and most positions that are read.
        offset: how far from the end the last of them stands, at least and at most; 1 is the last
            position of the context.
    """

    width: Bounds
    offset: Bounds

    def __post_init__(self) -> None:
        for name, (low, high) in (("width", self.width), ("offset", self.offset)):
            if not 1 <= low <= high:
                raise DataError(
                    f"The window's {name} is drawn from {low} to {high}; give two integers of at "
                    "least 1, the smaller one first."
                )

    def draw_end(self, rng: random.Random, start: int, end: int) -> int:
        """Index after the last position read, of the positions `start` to `end - 1`.

        Of a context too short for the offset, the end that comes closest.
        """
        assert start < end, (start, end)
        most = end - start
        low, high = (min(bound, most) for bound in self.offset)
        return end + 1 - rng.randint(low, high)

    def draw_width(self, rng: random.Random, most: int) -> int:
        """How many positions are read, where there are no more than `most`."""
        low, high = (min(bound, most) for bound in self.width)
        return rng.randint(low, high)

    def draw(self, rng: random.Random, start: int, end: int) -> range:
        """Positions among `start` to `end - 1`."""
        last = self.draw_end(rng, start, end)
        return range(last - self.draw_width(rng, last - start), last)


# The Activation Oracles' own (arXiv 2512.15674): for classification, and for LatentQA data.
SINGLE_TOKEN = Window(width=(1, 1), offset=(1, 5))
FEW_TOKENS = Window(width=(1, 3), offset=(1, 10))


def check_share(name: str, full_share: float) -> None:
    """Refuses a share of examples, of the source `name`, that is none."""
    if not 0 <= full_share <= 1:
        raise DataError(f"full_share of {name!r} is {full_share}; expected 0 to 1.")
