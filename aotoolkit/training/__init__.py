"""Training oracles."""

from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.default_contract import default_contract
from aotoolkit.training.model_card import push_to_hub
from aotoolkit.training.trainer import ORACLE_ADAPTER, TrainingResult, train_oracle

__all__ = [
    "ORACLE_ADAPTER",
    "TrainingConfig",
    "TrainingResult",
    "default_contract",
    "push_to_hub",
    "train_oracle",
]
