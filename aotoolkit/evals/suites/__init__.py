"""Suites on any model, from named files and adapters."""

from aotoolkit.evals.suites.aobench import aobench_suite
from aotoolkit.evals.suites.latentqa import latentqa_suite
from aotoolkit.evals.suites.organisms import Organisms, read_organisms
from aotoolkit.evals.suites.secret_keeping import secret_keeping_suite

__all__ = [
    "Organisms",
    "aobench_suite",
    "latentqa_suite",
    "read_organisms",
    "secret_keeping_suite",
]
