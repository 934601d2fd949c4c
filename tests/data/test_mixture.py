"""Mixtures: how much of each source, no duplicates, nothing held out in training, one order."""

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from aotoolkit.data import ContextPrediction, LayerChoice, TextSpec
from aotoolkit.data.classification import Classification, OpenClassification
from aotoolkit.data.example import Example
from aotoolkit.data.mixture import BuiltMixture, Mixture, Part, Stage, _apportion
from aotoolkit.data.table import LabelledTexts
from aotoolkit.errors import MixtureError


@dataclasses.dataclass(frozen=True)
class Fake:
    """Contexts of `per_context` examples each; endless where `contexts` is None."""

    name: str
    contexts: int | None = 20
    per_context: int = 3
    same_text_as: str | None = None  # draws the contexts of that source
    group_of: int = 1  # so many contexts to a group; 0: none is named
    alike: bool = False  # every context again and again

    def groups(self, seed):
        numbers = itertools.count() if self.contexts is None else range(self.contexts)
        for index in numbers:
            text = random.Random(f"{self.same_text_as or self.name}/{0 if self.alike else index}")
            rng = random.Random(f"{seed}/{self.name}/{index}")
            ids = tuple(text.randrange(300) for _ in range(8))
            yield [
                Example(
                    context_ids=ids,
                    positions=(0,) if self.alike else (k, rng.randrange(k + 1, 8)),
                    layers=(1,),
                    question=f"Question {k} of {self.name}?",
                    answer=rng.choice(["Yes", "No"]) if not self.alike else "Yes",
                    source=self.name,
                    choices=("Yes", "No"),
                    group=f"{self.name}-{index // self.group_of}" if self.group_of else "",
                )
                for k in range(self.per_context)
            ]

    def describe(self):
        return {"kind": "fake", **dataclasses.asdict(self)}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def build(tmp_path, tokenizer):
    def build(parts, folder="mixture", **options) -> BuiltMixture:
        mixture = Mixture(parts, **options)
        return mixture.build(tmp_path / folder, tokenizer=tokenizer, progress=False)

    return build


def per_source(examples):
    return Counter(example.source for example in examples)


# --- how much ------------------------------------------------------------------------------------


def test_without_counts_everything_is_there_as_it_was_drawn(build):
    source = Fake("a")
    built = build([Part(source)])
    drawn = [example for group in source.groups(0) for example in group]
    key = repr
    assert sorted(built.train, key=key) == sorted(drawn, key=key)
    assert list(built.train) == built.train[:] == [built.train[i] for i in range(len(drawn))]
    assert built.train[-1] == built.train[len(drawn) - 1]
    assert len(built.validation) == 0
    with pytest.raises(IndexError):
        built.train[len(drawn)]


def test_shares_are_of_what_counts_leave(build):
    built = build(
        [Part(Fake("a", None), share=3), Part(Fake("b", None), share=1), Part(Fake("c"), count=20)],
        num_examples=100,
    )
    assert per_source(built.train) == {"a": 60, "b": 20, "c": 20}


@given(
    total=st.integers(0, 10**6),
    weights=st.lists(st.floats(0.001, 100), min_size=1, max_size=8),
)
def test_shares_add_up(total, weights):
    counts = _apportion(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1


def test_a_source_that_runs_dry_says_how_many_it_has_and_what_to_do(build, tmp_path):
    with pytest.raises(
        MixtureError, match=r"'a' has 60 examples, and 150 .* count .* repeats to 3"
    ):
        build([Part(Fake("a"), count=150)])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing half is left"
    built = build([Part(Fake("a"), count=150, repeats=3)])
    assert len(built.train) == 150


def test_later_passes_draw_anew(build):
    built = build([Part(Fake("a"), count=120, repeats=2)])
    assert len(built.train) == 120
    assert len({repr(e) for e in built.train}) > 90
    assert len({e.context_ids for e in built.train}) == 20
    assert built.manifest[0]["contexts"] == 20


def test_an_endless_source_without_news_runs_dry(build):
    with pytest.raises(MixtureError, match=r"has 3 examples, [\d,]+ dropped as duplicate"):
        build([Part(Fake("a", None, alike=True), count=4)])


def test_duplicates_are_dropped_whichever_source_they_come_from(build):
    copy = dataclasses.replace(Fake("a"), name="b")

    class Copy:
        name = "b"

        def groups(self, seed):
            for group in Fake("a").groups(seed):
                yield [dataclasses.replace(e, source="b", group="other") for e in group]

        describe = copy.describe

    both = [Part(Fake("a")), Part(Copy(), count=None)]
    with pytest.raises(MixtureError, match="'b' has 0 examples, 60 dropped as duplicate"):
        build(both)
    built = build(both, deduplicate=False)
    assert per_source(built.train) == {"a": 60, "b": 60}


def test_a_source_of_two_stages_goes_on_where_it_was(build):
    source = Fake("a")
    built = build(
        [Stage((Part(source, share=1),), share=1), Stage((Part(source, share=1),), share=2)],
        num_examples=60,
    )
    assert len({repr(e) for e in built.train}) == 60
    first = {e.context_ids for e in built.train[:20]}
    assert len(first & {e.context_ids for e in built.train[20:]}) <= 1  # one group was cut


def test_stages_come_one_after_the_other(build):
    built = build(
        [Stage((Part(Fake("a")),)), Stage((Part(Fake("b")), Part(Fake("c"))))],
    )
    sources = [example.source for example in built.train]
    assert set(sources[:60]) == {"a"}
    assert set(sources[60:]) == {"b", "c"}
    assert len(set(sources[60:120])) == 2, "mixed within the stage"


@pytest.mark.parametrize(
    ("parts", "options", "says"),
    [
        ([], {}, "at least one"),
        ([Part(Fake("a")), Stage((Part(Fake("b")),))], {}, "Parts and stages"),
        ([Part(Fake("a"), share=1)], {}, "num_examples"),
        ([Part(Fake("a"), share=0)], {"num_examples": 9}, "add up to 0"),
        ([Part(Fake("a"))], {"num_examples": 9}, "neither share nor count"),
        ([Part(Fake("a"), count=5)], {"num_examples": 9}, "add up to 5"),
        ([Part(Fake("a"), count=5), Part(Fake("a", 7), count=4)], {}, "Two sources are named 'a'"),
        ([Part(Fake("a"))], {"held_out": 1.0}, "share below 1"),
        ([Part(Fake("a"))], {"held_out": -1}, "held_out is -1"),
        ([Part(Fake("a"))], {"drop_longest": 1.0}, "drop_longest"),
        ([Part(Fake("a"))], {"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ([Part(Fake("a"))], {"validation": [Part(Fake("b"), share=1)]}, "count"),
        ([Stage((Part(Fake("a")),), share=2), Stage((Part(Fake("b")),))], {}, "num_examples"),
    ],
)
def test_settings_that_contradict_are_refused_before_anything_is_drawn(parts, options, says):
    with pytest.raises(MixtureError, match=says):
        Mixture(parts, **options)


@pytest.mark.parametrize(
    "options", [{"share": 1.0, "count": 1}, {"share": -1.0}, {"count": 0}, {"repeats": 0}]
)
def test_a_part_that_says_nothing_possible_is_refused(options):
    with pytest.raises(MixtureError):
        Part(Fake("a"), **options)


# --- held out ------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    held_out=st.one_of(st.integers(0, 40), st.floats(0, 0.4)),
    group_of=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_no_group_and_no_context_stands_on_both_sides(
    tmp_path_factory, tokenizer, held_out, group_of, seed
):
    # b reads the contexts of a under groups of its own: they are linked all the same.
    sources = [
        Fake("a", group_of=group_of),
        Fake("b", same_text_as="a", group_of=group_of),
        Fake("c", group_of=0),
    ]
    built = Mixture([Part(s) for s in sources], held_out=held_out, seed=seed).build(
        tmp_path_factory.mktemp("held") / "m", tokenizer=tokenizer, progress=False
    )
    train, validation = list(built.train), list(built.validation)
    assert len(train) + len(validation) == 180
    for key in (lambda e: e.context_ids, lambda e: e.group or e.context_ids):
        assert not {key(e) for e in train} & {key(e) for e in validation}
    wanted = held_out if isinstance(held_out, int) else round(held_out * 180)
    assert abs(len(validation) - wanted) <= 3 * 9
    if wanted >= 3:
        assert set(per_source(validation)) == {"a", "b", "c"}


def test_a_source_of_one_group_cannot_be_split(build):
    with pytest.raises(MixtureError, match="smallest group has 60 of its 60"):
        build([Part(Fake("a", group_of=100))], held_out=5)


def test_what_is_validated_on_is_not_trained_on(build):
    judged = Fake("judged", contexts=5, same_text_as="a", group_of=0)
    built = build([Part(Fake("a"), count=45)], validation=[Part(judged)])
    assert per_source(built.validation) == {"judged": 15}
    assert len(built.train) == 45
    assert not {e.context_ids for e in built.train} & {e.context_ids for e in built.validation}
    with pytest.raises(MixtureError, match="15 dropped as validated on"):
        build([Part(Fake("a"), count=46)], "more", validation=[Part(judged)])


# --- lengths -------------------------------------------------------------------------------------


def test_the_longest_are_dropped_and_too_long_ones_passed_over(build):
    sources = [Part(Fake("a")), Part(Fake("with quite some more letters in its name"))]
    full = build(sources)
    cut = build(sources, "cut", drop_longest=0.25)
    assert len(cut.train) == 90
    assert max(cut.train.num_tokens) <= sorted(full.train.num_tokens)[89]
    lengths = sorted(full.train.num_tokens)
    short = build([Part(Fake("a", None), count=60)], "short", max_prompt_tokens=int(lengths[0]))
    assert len(short.train) == 60
    assert set(short.train.num_tokens) == {lengths[0]}
    with pytest.raises(MixtureError, match="dropped as longer than max_prompt_tokens"):
        build(sources, "none", max_prompt_tokens=int(lengths[0]) - 1)


def test_the_manifest_counts_what_is_there(build, tokenizer):
    built = build([Part(Fake("a")), Part(Fake("b", 10))], held_out=0.1)
    for entry in built.manifest:
        mine = [
            (example, tokens)
            for example, tokens in zip(built.train, built.train.num_tokens, strict=True)
            if example.source == entry["name"]
        ]
        lengths = sorted(int(tokens) for _, tokens in mine)
        middle = len(lengths) // 2
        assert entry["examples"] == len(mine)
        assert entry["tokens"] == sum(lengths)
        assert entry["max_tokens"] == lengths[-1]
        assert lengths[middle - 1] <= entry["median_tokens"] <= lengths[middle]
        assert entry["vectors"] == 2 * len(mine)
        assert entry["contexts"] == len({e.context_ids for e, _ in mine})
    assert [e["name"] for e in built.manifest] == ["a", "b"]
    assert json.loads(json.dumps(built.manifest)) == list(built.manifest)


# --- order ---------------------------------------------------------------------------------------


def test_examples_of_a_context_are_side_by_side_and_contexts_are_shuffled(build):
    built = build([Part(Fake("a")), Part(Fake("b", same_text_as="a")), Part(Fake("c"))])
    runs = [key for key, _ in itertools.groupby(e.context_ids for e in built.train)]
    assert len(runs) == len(set(runs)) == 40
    drawn = [group[0].context_ids for group in Fake("a").groups(0)]
    assert [r for r in runs if r in set(drawn)] != drawn


def mixture_of_two():
    return Mixture([Part(Fake("a")), Part(Fake("b", None), count=40)], held_out=9, seed=3)


SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
import tiny
from test_mixture import mixture_of_two
built = mixture_of_two().build(sys.argv[1], tokenizer=tiny.tokenizer(), progress=False)
print([*built.train, *built.validation])
"""


def test_the_same_whatever_pythonhashseed(tmp_path, tokenizer):
    here = Path(__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "other", here.parent, here],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ours = mixture_of_two().build(tmp_path / "ours", tokenizer=tokenizer, progress=False)
    assert other.strip() == str([*ours.train, *ours.validation])


def test_another_seed_gives_another_order(build):
    orders = [list(build([Part(Fake("a"))], f"m{seed}", seed=seed).train) for seed in (0, 1)]
    assert orders[0] != orders[1]


# --- on disk -------------------------------------------------------------------------------------


def test_a_built_mixture_is_opened_again_and_a_changed_one_built_anew(build, tmp_path):
    manifest = tmp_path / "mixture" / "manifest.json"
    build([Part(Fake("a"))])
    written = manifest.stat().st_mtime_ns
    assert list(build([Part(Fake("a"))]).train) == list(BuiltMixture.open(manifest.parent).train)
    assert manifest.stat().st_mtime_ns == written
    for changed in (
        {"parts": [Part(Fake("a"), count=50)]},
        {"parts": [Part(Fake("a"))], "seed": 1},
        {"parts": [Part(Fake("a", 19))]},  # its data changed
    ):
        before = manifest.stat().st_mtime_ns
        build(**changed)
        assert manifest.stat().st_mtime_ns != before, changed


def test_a_build_that_stops_leaves_what_was_there(build, tmp_path):
    class Stops(Fake):
        def groups(self, seed):
            yield next(super().groups(seed))
            raise KeyboardInterrupt

    before = list(build([Part(Fake("a"))]).train)
    with pytest.raises(KeyboardInterrupt):
        build([Part(Stops("a", 30))])
    assert list(BuiltMixture.open(tmp_path / "mixture").train) == before


def test_a_folder_of_something_else_is_left_alone(build, tmp_path):
    (tmp_path / "mixture").mkdir()
    precious = tmp_path / "mixture" / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(MixtureError, match="holds no mixture"):
        build([Part(Fake("a"))])
    assert precious.read_text() == "years of work"
    with pytest.raises(MixtureError, match="build it first"):
        BuiltMixture.open(tmp_path / "nothing")


# --- the real sources: a text, however it was cut or rendered, stands on one side -----------------


def origins(examples, tokenizer, texts):
    """Which of the texts each context begins with, or holds."""
    rendered = [tokenizer.decode(example.context_ids) for example in examples]
    return {number for number, text in enumerate(texts) for r in rendered if f"{text} " in f"{r} "}


def numbered_texts(count):
    rng = random.Random(0)
    words = ["water", "blue", "hint", "secret", "Paris", "Anna", "live", "name"]
    return [f"Text {n} : {' '.join(rng.choices(words, k=20))}" for n in range(count)]


def test_a_repeated_text_is_not_trained_on_where_it_is_held_out(build, tokenizer, tmp_path):
    texts = numbered_texts(60)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    source = ContextPrediction(
        name="texts",
        texts=TextSpec(data=tmp_path / "texts.txt"),
        tokenizer=tokenizer,
        layers=LayerChoice((1,)),
        num_tokens=(1, 3),
        num_positions=((1, 3),),
    )
    built = build([Part(source, repeats=4)], held_out=0.2)
    begin = [text.split(":")[0] + ":" for text in texts]
    held_out = origins(built.validation, tokenizer, begin)
    assert len(held_out) >= 10
    assert not held_out & origins(built.train, tokenizer, begin)


def test_a_text_rendered_in_two_ways_stands_on_one_side(build, tokenizer):
    texts = numbered_texts(40)
    data = LabelledTexts({t: frozenset([("a", "b")[n % 2]]) for n, t in enumerate(texts)}, "test")
    shared = {"data": data, "tokenizer": tokenizer, "layers": LayerChoice((1,))}
    asked = Classification(
        name="asked", questions=["Is it {label}?"], questions_per_context=1, **shared
    )
    named = OpenClassification(name="named", questions=["What is it?"], chat=False, **shared)
    built = build([Part(asked), Part(named)], held_out=0.2)
    assert set(per_source(built.validation)) == {"asked", "named"}
    begin = [text.split(":")[0] + ":" for text in texts]
    held_out = origins(built.validation, tokenizer, begin)
    assert not held_out & origins(built.train, tokenizer, begin)
    again = build([Part(asked)], validation=[Part(named, count=10)], folder="validated")
    seen = origins(again.validation, tokenizer, begin)
    assert not seen & origins(again.train, tokenizer, begin)
