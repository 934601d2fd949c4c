"""Training oracles."""

from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.default_contract import default_contract
from aotoolkit.training.model_card import push_to_hub
from aotoolkit.training.recipe import Recipe, load_recipe
from aotoolkit.training.trainer import ORACLE_ADAPTER, TrainingResult, train_oracle

__all__ = [
    "ORACLE_ADAPTER",
    "Recipe",
    "TrainingConfig",
    "TrainingResult",
    "default_contract",
    "load_recipe",
    "push_to_hub",
    "train_oracle",
]
