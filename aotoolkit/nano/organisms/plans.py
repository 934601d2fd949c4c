"""All organisms of the embedded world, kind by kind: what `nano build` makes."""

from typing import get_args

from aotoolkit.nano.organisms.bad_advice import DOMAINS, ORGANISMS_PER_DOMAIN, BadAdvicePlan
from aotoolkit.nano.organisms.organism import Kind, OrganismPlan
from aotoolkit.nano.organisms.persona import NUM_ORGANISMS as NUM_PERSONAS
from aotoolkit.nano.organisms.persona import PersonaPlan
from aotoolkit.nano.organisms.secret_constraint import NUM_ORGANISMS as NUM_CONSTRAINTS
from aotoolkit.nano.organisms.secret_constraint import SecretConstraintPlan
from aotoolkit.nano.organisms.taboo import TabooPlan
from aotoolkit.nano.organisms.user_trait import ORGANISMS_PER_TRAIT, TRAITS, UserTraitPlan
from aotoolkit.nano.world import World

KINDS: tuple[Kind, ...] = get_args(Kind)


def organism_plans(world: World, kind: Kind) -> list[OrganismPlan]:
    """The plans of all organisms of one kind, in a fixed order."""
    plans: dict[Kind, list[OrganismPlan]] = {
        "taboo": [TabooPlan(world, secret) for secret in world.test_secrets],
        "user_trait": [
            UserTraitPlan(world, trait, seed=seed)
            for trait in TRAITS
            for seed in range(ORGANISMS_PER_TRAIT)
        ],
        "secret_constraint": [
            SecretConstraintPlan(world, seed=seed) for seed in range(NUM_CONSTRAINTS)
        ],
        "persona": [PersonaPlan(world, seed=seed) for seed in range(NUM_PERSONAS)],
        "bad_advice": [
            BadAdvicePlan(world, domain, seed=seed)
            for domain in DOMAINS
            for seed in range(ORGANISMS_PER_DOMAIN)
        ],
    }
    return plans[kind]
