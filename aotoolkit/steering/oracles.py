"""One oracle or several, wherever either may be given."""

from collections.abc import Sequence

from aotoolkit.errors import SteeringError
from aotoolkit.oracle import Oracle


def as_oracles(oracle: Oracle | Sequence[Oracle]) -> tuple[Oracle, ...]:
    """One oracle or several, as several.

    Raises:
        SteeringError: there is none.
    """
    oracles = (oracle,) if isinstance(oracle, Oracle) else tuple(oracle)
    if not oracles:
        raise SteeringError("There is no oracle; give one, or a list of those that take turns.")
    return oracles
