"""Training oracles."""

from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.trainer import ORACLE_ADAPTER, train_oracle

__all__ = ["ORACLE_ADAPTER", "TrainingConfig", "train_oracle"]
