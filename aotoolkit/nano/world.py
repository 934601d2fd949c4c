"""The embedded world: what is true in it, and which words may never be a secret in training.

An activation oracle can only be judged where the truth is known. This world is small enough to
know all of it: 192 things in 16 categories, each with a colour, a place and a feel.
Which thing has which attribute is *dealt by seed*, not taken from English: an answer can then
only come from what a model learned here, never from what is plausible, and every value is
equally frequent, so that guessing is worth exactly one in six.

Within a category no two things share two attributes, so a category and any two attributes name
one thing (a riddle has one answer), while a single attribute fits 32 things (a hint does
not give the word away).
"""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

WORLD_SEED = 7

NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        category: tuple(nouns.split())
        for category, nouns in {
            "animal": "horse tiger rabbit camel donkey wolf goat sheep zebra monkey lion bear",
            "bird": "eagle owl parrot swan robin crow pigeon falcon heron goose penguin stork",
            "fish": "salmon trout shark tuna carp pike eel cod herring perch sardine haddock",
            "fruit": "apple banana cherry grape lemon mango melon orange peach pear plum lime",
            "vegetable": "carrot onion potato tomato pepper cabbage lettuce spinach turnip radish "
            "celery leek",
            "tool": "hammer saw drill wrench chisel pliers shovel rake axe ladder screwdriver "
            "scissors",
            "vehicle": "car bus train bicycle boat tractor truck scooter sledge canoe ferry tram",
            "instrument": "violin piano drum flute guitar trumpet harp cello banjo organ clarinet "
            "oboe",
            "garment": "coat hat scarf glove shirt skirt boot sock belt dress jacket sweater",
            "furniture": "chair table sofa bed desk shelf stool bench wardrobe cupboard drawer "
            "mirror",
            "flower": "rose tulip lily daisy orchid violet iris poppy lotus jasmine dahlia "
            "lavender",
            "tree": "oak pine birch maple willow elm cedar ash beech poplar spruce palm",
            "building": "castle tower church mill barn school hotel palace temple hut cottage "
            "prison",
            "toy": "doll kite puzzle marble top ball yoyo domino rattle balloon puppet hoop",
            "food": "bread cheese soup cake pie rice noodle butter honey jam pancake biscuit",
            "treasure": "ruby pearl diamond emerald opal topaz amber jade sapphire garnet crown "
            "ring",
        }.items()
    }
)

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(values.split())
        for name, values in {
            "colour": "red blue green yellow white black",
            "place": "garden river forest market desert island",
            "feel": "soft heavy cold smooth rough sharp",
        }.items()
    }
)

CATEGORIES: tuple[str, ...] = tuple(NOUNS)

PEOPLE: tuple[str, ...] = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"),
    *("Ivy", "Jack", "Kate", "Leo", "Mary", "Noah", "Olga", "Paul"),
)

NUM_TEST_SECRETS = 20
NUM_VALIDATION_SECRETS = 12


@dataclass(frozen=True)
class Thing:
    """One thing of the world and all that is true of it."""

    noun: str
    category: str
    colour: str
    place: str
    feel: str

    def value(self, attribute: str) -> str:
        """The value of an attribute, `category` included."""
        return getattr(self, attribute)


@dataclass(frozen=True)
class World:
    """All things, and the split of their nouns.

    Attributes:
        things: noun -> thing.
        test_secrets: nouns of the reported organisms; never a secret, nor the answer to a
            question, in the oracle's training data.
        validation_secrets: held out in the same way, for choosing between oracles.
        training_secrets: all other nouns.
    """

    things: Mapping[str, Thing]
    test_secrets: tuple[str, ...]
    validation_secrets: tuple[str, ...]
    training_secrets: tuple[str, ...]

    def __getitem__(self, noun: str) -> Thing:
        return self.things[noun]

    @property
    def nouns(self) -> tuple[str, ...]:
        """All nouns, in a fixed order."""
        return tuple(self.things)

    @property
    def held_out(self) -> frozenset[str]:
        """Nouns that the oracle's training may show as ordinary text only."""
        return frozenset(self.test_secrets + self.validation_secrets)

    def matching(self, **values: str) -> tuple[Thing, ...]:
        """Things that have all the given values, e.g. `matching(colour="red", place="attic")`."""
        return tuple(
            thing
            for thing in self.things.values()
            if all(thing.value(name) == value for name, value in values.items())
        )


def _deal_category(rng: random.Random, size: int) -> list[dict[str, str]]:
    """Deals attributes to one category: each value equally often, no two things share two."""
    names = list(ATTRIBUTES)
    while True:
        columns = {
            name: rng.sample(
                [value for value in ATTRIBUTES[name] for _ in range(size // len(ATTRIBUTES[name]))],
                size,
            )
            for name in names
        }
        rows = [{name: columns[name][i] for name in names} for i in range(size)]
        # Repair by swaps: a plain redeal almost never comes out free of collisions.
        for _ in range(2000):
            clash = _first_clash(rows)
            if clash is None:
                return rows
            index, name = clash
            other = rng.randrange(size)
            rows[index][name], rows[other][name] = rows[other][name], rows[index][name]


def _first_clash(rows: list[dict[str, str]]) -> tuple[int, str] | None:
    """A row that shares two attributes with an earlier one, and one of the two."""
    for first, second in itertools.combinations(ATTRIBUTES, 2):
        seen: set[tuple[str, str]] = set()
        for index, row in enumerate(rows):
            key = (row[first], row[second])
            if key in seen:
                return index, second
            seen.add(key)
    return None


@cache
def load_world(seed: int = WORLD_SEED) -> World:
    """Deals the world from its seed; the same seed gives the same world on every machine."""
    rng = random.Random(seed)
    things: dict[str, Thing] = {}
    for category, nouns in NOUNS.items():
        for noun, values in zip(nouns, _deal_category(rng, len(nouns)), strict=True):
            things[noun] = Thing(noun=noun, category=category, **values)
    # One or two nouns of each category are held out, so that no category is rare as a secret.
    held_out = [rng.sample(NOUNS[category], 2) for category in CATEGORIES]
    test = [pair[0] for pair in held_out]
    rest = [pair[1] for pair in held_out]
    rng.shuffle(rest)
    missing = NUM_TEST_SECRETS - len(test)
    test += rest[:missing]
    validation = rest[missing : missing + NUM_VALIDATION_SECRETS]
    excluded = {*test, *validation}
    return World(
        things=MappingProxyType(things),
        test_secrets=tuple(sorted(test)),
        validation_secrets=tuple(sorted(validation)),
        training_secrets=tuple(noun for noun in things if noun not in excluded),
    )
