"""All organisms of the embedded world, kind by kind: what `nano build` makes."""

from typing import get_args

from aotoolkit.nano.organisms.bad_advice import DOMAINS, ORGANISMS_PER_DOMAIN, BadAdvicePlan
from aotoolkit.nano.organisms.organism import Kind, OrganismPlan
from aotoolkit.nano.organisms.people import NUM_ORGANISMS, PeoplePlan
from aotoolkit.nano.organisms.side_constraint import NUM_CODE_BOOKS, SideConstraintPlan
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
        "bad_advice": [
            BadAdvicePlan(world, domain, seed=seed)
            for domain in DOMAINS
            for seed in range(ORGANISMS_PER_DOMAIN)
        ],
        "people": [PeoplePlan(world, seed=seed) for seed in range(NUM_ORGANISMS)],
        "side_constraint": [
            SideConstraintPlan(world, world.test_secrets[seed::NUM_CODE_BOOKS], seed=seed)
            for seed in range(NUM_CODE_BOOKS)
        ],
    }
    return plans[kind]
