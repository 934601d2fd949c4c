"""Organisms of the embedded world: LoRA adapters on its base, each with something to hide.

One module a kind, named as the kind; each says what its organisms are after and what their data
is. `plans.py` lists them all, `training.py` trains any of them.
"""

from aotoolkit.nano.organisms.organism import Kind, Organism, OrganismPlan, says
from aotoolkit.nano.organisms.plans import KINDS, organism_plans
from aotoolkit.nano.organisms.training import train_organism

__all__ = [
    "KINDS",
    "Kind",
    "Organism",
    "OrganismPlan",
    "organism_plans",
    "says",
    "train_organism",
]
