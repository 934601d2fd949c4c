"""Whether an oracle reads: statistics over organisms."""

from aotoolkit.evals.statistics import Estimate, bootstrap_mean

__all__ = ["Estimate", "bootstrap_mean"]
