"""The world is what its docstring says, on every machine."""

import collections
import itertools
import subprocess
import sys

import pytest

from aotoolkit.nano.world import ATTRIBUTES, CATEGORIES, NOUNS, PEOPLE, load_world


def test_every_value_is_equally_frequent_within_each_category():
    world = load_world()
    for category, attribute in itertools.product(CATEGORIES, ATTRIBUTES):
        things = world.matching(category=category)
        counts = collections.Counter(thing.value(attribute) for thing in things)
        assert set(counts.values()) == {len(things) // len(ATTRIBUTES[attribute])}


def test_a_category_and_two_attributes_name_one_thing():
    world = load_world()
    for thing in world.things.values():
        for pair in itertools.combinations(ATTRIBUTES, 2):
            values = {name: thing.value(name) for name in pair}
            assert world.matching(category=thing.category, **values) == (thing,)


def test_one_attribute_fits_32_things():
    world = load_world()
    for name, values in ATTRIBUTES.items():
        assert {len(world.matching(**{name: value})) for value in values} == {32}


def test_words_of_the_world_are_distinct():
    words = [noun for nouns in NOUNS.values() for noun in nouns]
    words += [value for values in ATTRIBUTES.values() for value in values]
    words += [name.lower() for name in PEOPLE]
    assert len(words) == len(set(words))


def test_the_split_is_disjoint_whole_and_spread_over_categories():
    world = load_world()
    parts = (world.test_secrets, world.validation_secrets, world.training_secrets)
    assert sorted(itertools.chain(*parts)) == sorted(world.nouns)
    assert len(world.test_secrets) >= 16
    assert {world[noun].category for noun in world.test_secrets} == set(CATEGORIES)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_world_does_not_depend_on_hash_randomisation(hash_seed):
    code = (
        "from aotoolkit.nano.world import load_world; w = load_world();"
        "print(repr((dict(w.things), w.test_secrets, w.validation_secrets)))"
    )
    environment = {"PYTHONHASHSEED": hash_seed}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout.strip()
    world = load_world()
    assert output == repr((dict(world.things), world.test_secrets, world.validation_secrets))


def test_another_seed_deals_another_world():
    assert load_world(8).things["apple"] != load_world(7).things["apple"] or (
        load_world(8).test_secrets != load_world(7).test_secrets
    )
