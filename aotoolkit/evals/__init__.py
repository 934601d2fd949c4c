"""Whether an oracle reads: items, the arms that answer them, and statistics over organisms."""

from aotoolkit.evals.arms import ARM_CONTROLS, Arm, ControlArm, Kind, OracleArm
from aotoolkit.evals.items import ArmAnswer, EvalItem, ItemSpec, Task, read_items
from aotoolkit.evals.statistics import Estimate, bootstrap_mean

__all__ = [
    "ARM_CONTROLS",
    "Arm",
    "ArmAnswer",
    "ControlArm",
    "Estimate",
    "EvalItem",
    "ItemSpec",
    "Kind",
    "OracleArm",
    "Task",
    "bootstrap_mean",
    "read_items",
]
