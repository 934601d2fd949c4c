"""Variants of the oracle: each differs in what it says, and a claim about them is decided."""

import dataclasses
import random
import shutil

import pytest
from test_build import SHORT

from aotoolkit import nano
from aotoolkit.errors import NanoWeightsError, RecipeError
from aotoolkit.evals import run_suite
from aotoolkit.evals.metrics import refuses
from aotoolkit.evals.report import write_report
from aotoolkit.nano import build
from aotoolkit.nano.load import WEIGHTS, load_model
from aotoolkit.nano.variant_suite import HEADER_TASKS, load_variants, variant_suite
from aotoolkit.nano.variants import KIND_OF_TASK, VARIANTS, variant, variant_recipe
from aotoolkit.oracle.contract import OracleContract
from aotoolkit.training import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(build.RECIPE)


def counts(recipe) -> dict[str, int]:
    """Examples of each source."""
    _, _, mixture = recipe.check()
    assert mixture is not None
    return {
        part.source.name: count
        for stage, own in zip(mixture.stages, mixture.counts, strict=True)
        for part, count in zip(stage.parts, own, strict=True)
    }


def test_each_variant_has_what_it_says_and_as_much_as_the_full_one_of_it(recipe):
    full = counts(variant_recipe(recipe, variant("full")))
    assert full == counts(recipe)
    for name, left_out in {
        "latentqa": {"reading", "context_prediction", "topic"},
        "latentqa_classification": {"reading", "context_prediction"},
    }.items():
        kept = counts(variant_recipe(recipe, variant(name)))
        assert kept.keys() == full.keys() - left_out
        # Held-out examples are as many in all, so that shares of the rest differ a little.
        assert all(abs(kept[source] - full[source]) < 0.02 * full[source] + 2 for source in kept)


def test_equal_size_is_the_size_of_the_smallest_and_has_every_kind(recipe):
    derived = {one.name: variant_recipe(recipe, one) for one in VARIANTS}
    steps = {name: one.settings.training.max_steps for name, one in derived.items()}
    sizes = {name: one.settings.data.num_examples for name, one in derived.items()}
    for lengths in (steps, sizes):
        assert lengths["full_equal_size"] == lengths["latentqa"] == min(lengths.values())
        assert lengths["latentqa"] < lengths["latentqa_classification"] < lengths["full"]
    assert counts(derived["full_equal_size"]).keys() == counts(derived["full"]).keys()
    # A run that sees each example once, as the full one does.
    batch = recipe.settings.training.batch_size
    for name, length in steps.items():
        assert abs(length * batch - (sizes[name] - recipe.settings.data.held_out)) <= batch


def test_transforms_and_seeds(recipe):
    centred = variant_recipe(recipe, variant("full_centred"), seed=2).settings
    plain = variant_recipe(recipe, variant("full_uncentred"), seed=2).settings
    assert centred.transform.kind == "centred_by_token"
    assert plain.transform.kind == "none"
    assert centred.data == plain.data
    assert centred.data.seed == recipe.settings.data.seed + 2
    assert centred.training.seed == plain.training.seed == recipe.settings.training.seed + 2


def test_without_recall_and_mean_a_variant_differs_in_that_alone(recipe):
    without = variant_recipe(recipe, variant("full_unpooled")).settings
    whole = variant_recipe(recipe, variant("full")).settings
    assert (whole.transform.kind, without.transform.kind) == ("mapped_recalled", "mapped_by_token")
    assert without.transform.model_copy(update={"kind": "mapped_recalled"}) == whole.transform
    assert (without.data, without.training) == (whole.data, whole.training)


def test_full_is_the_oracle_of_the_folder_where_one_is_there(tmp_path, monkeypatch):
    for part in ("base", "oracle"):
        shutil.copytree(WEIGHTS / part, tmp_path / part)

    def trained(*_, **__):
        raise InterruptedError("it is trained")

    monkeypatch.setattr(Recipe, "run", trained)
    build.build(tmp_path, part="variants", variants=["full"], threads=1)
    full, oracle = tmp_path / "variants" / "full-seed0", tmp_path / "oracle"
    assert {path.name for path in full.iterdir()} == {path.name for path in oracle.iterdir()}
    for name in ("adapter_model.safetensors", "vector_transform.safetensors"):
        assert (full / name).read_bytes() == (oracle / name).read_bytes()
    made, whole = OracleContract.read(full), OracleContract.read(oracle)
    variant_of = {"name": "full", "seed": 0, "steps": 3000}
    assert made == dataclasses.replace(whole, extra={**whole.extra, "variant": variant_of})

    shutil.rmtree(full)
    for wanted in ({"variants": ["full"], "seeds": 2}, {"variants": ["full"], "steps": 1500}):
        with pytest.raises(InterruptedError):
            build.build(tmp_path, part="variants", threads=1, **wanted)
        assert full.is_dir() == ("seeds" in wanted)
        shutil.rmtree(full, ignore_errors=True)
    # Another version's is the same training, if all else is.
    dataclasses.replace(whole, aotoolkit_version="0.0.1").write(oracle)
    build.build(tmp_path, part="variants", variants=["full"], threads=1)
    # One that is there is left alone only where it is what is wanted.
    build.build(tmp_path, part="variants", variants=["full"], threads=1)
    made = OracleContract.read(full)
    dataclasses.replace(made, lora_rank=32).write(full)
    with pytest.raises(NanoWeightsError, match=r"full-seed0 was trained on another base, on other"):
        build.build(tmp_path, part="variants", variants=["full"], threads=1)
    shutil.rmtree(full)
    *parts, last = whole.training_data
    for change in (
        {"base_digest": "0" * 64},
        {"base_digest": None},
        {"lora_rank": 32},
        {"transform": "mapped_pooled"},
        {"training_data": (*parts, {**last, "examples": last["examples"] - 1})},
        {"training_data": (*parts, {**last, "source": {**last["source"], "digest": "other"}})},
    ):
        dataclasses.replace(whole, **change).write(oracle)
        with pytest.raises(InterruptedError):
            build.build(tmp_path, part="variants", variants=["full"], threads=1)
    shutil.rmtree(oracle)
    with pytest.raises(InterruptedError):
        build.build(tmp_path, part="variants", variants=["full"], threads=1)


def test_a_task_of_no_kind_is_refused(recipe, monkeypatch):
    monkeypatch.delitem(KIND_OF_TASK, "topic")
    with pytest.raises(RecipeError, match=r"'topic' is of no kind"):
        variant_recipe(recipe, variant("full"))
    with pytest.raises(NanoWeightsError, match=r"no variant 'none'.*latentqa_classification"):
        variant("none")


def test_abstentions_are_where_nothing_answers(recipe):
    tokenizer, _, mixture = variant_recipe(recipe, variant("full_abstention")).check()
    empty, without = (mixture.sources[name] for name in ("nothing_there", "no_secret"))
    drawn = [next(groups) for groups in [empty.groups(0)] for _ in range(40)]
    examples = [example for group in drawn for example in group]
    assert {example.evidence for example in examples} == {"zero", "random"}
    groups = without.groups(0)
    unasked = [example for _ in range(40) for example in next(groups)]
    assert all(example.evidence not in ("zero", "random") for example in unasked)
    for example in [*examples, *unasked]:
        assert refuses(example.answer)
        # An evaluation's answers are cut at 12 tokens.
        assert len(tokenizer(example.answer)["input_ids"]) <= 12
    by_kind = {source: [e for e in unasked if e.source == source] for source in _WITHOUT_SECRET}
    assert sum(map(len, by_kind.values())) == len(unasked)
    assert all(len(examples) >= 10 for examples in by_kind.values())
    for example in by_kind["no_secret"]:
        assert "secret" not in tokenizer.decode(list(example.context_ids))
    # Word for word what a model says that was told a word, and nobody told it.
    dialogues = 0
    for number in range(40):
        rng = random.Random(number)
        if rng.random() < 0.5:
            dialogues += 1
            _, ids, positions, begin = without._plain.dialogue_about_secret(rng)
            (example,) = without.draw(random.Random(number))
            assert "system" in tokenizer.decode(ids[:begin])
            assert example.context_ids == ids[begin : positions.stop]
            assert example.positions == tuple(p - begin for p in positions)
            assert example.source == "no_secret_dialogue"
    assert dialogues > 10
    for example in by_kind["no_secret_dialogue"]:
        text = tokenizer.decode(list(example.context_ids))
        assert text.startswith("<|im_start|>user\n")
        assert "system" not in text
        assert text.endswith("<|im_end|>")


_WITHOUT_SECRET = ("no_secret", "no_secret_dialogue")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("variants")
    shutil.copytree(WEIGHTS / "base", out / "base")
    text = build.RECIPE.read_text()
    for whole, short in SHORT.items():
        text = text.replace(whole, short)
    recipe = out / "short.yaml"
    recipe.write_text(text)
    names = ["full_centred", "full_uncentred"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "RECIPE", recipe)
        build.build(out, part="variants", variants=["full"], threads=1)
        before = (out / "variants" / "full-seed0").stat().st_mtime_ns
        build.build(out, part="variants", variants=["full"], threads=1)
        build.build(out, part="variants", variants=names, seeds=2, threads=2)
        build.build(out, part="variants", variants=names, seeds=2, threads=2)
        with pytest.raises(NanoWeightsError, match=r"trained for 2 steps .*; 3 and"):
            build.build(out, part="variants", variants=["full"], steps=3, threads=1)
        recipe.write_text(text.replace("kind: mapped_recalled", "kind: mapped_pooled"))
        with pytest.raises(NanoWeightsError, match="'mapped_recalled'; 2 and 'mapped_pooled' are"):
            build.build(out, part="variants", variants=["full"], threads=1)
    assert (out / "variants" / "full-seed0").stat().st_mtime_ns == before
    return out


@pytest.mark.slow
def test_what_is_built_says_what_it_is(built):
    folders = sorted(path.name for path in (built / "variants").iterdir())
    assert folders == [
        "full-seed0",
        *(f"full_{name}-seed{seed}" for name in ("centred", "uncentred") for seed in (0, 1)),
    ]
    made = OracleContract.read(built / "variants" / "full_centred-seed1")
    assert made.extra["variant"] == {"name": "full_centred", "seed": 1, "steps": 2}
    assert made.transform == "centred_by_token"


@pytest.mark.slow
def test_full_is_also_asked_as_it_was_trained(built, lab):
    oracles = load_variants(lab, built)
    (full,), (pooled,) = (oracles[name].values() for name in ("full", "full_pooled"))
    assert full.transform.kind == "mapped_recalled"
    assert pooled.contract.transform == pooled.transform.kind == "mapped_pooled"
    assert pooled.adapter == full.adapter


@pytest.mark.slow
def test_all_in_a_folder_are_compared_in_one_table(built, lab, tmp_path):
    suite = variant_suite(lab, built, quick=True, baselines=False)
    wanted = ("state, header", "taboo, header", "vagueness")
    entries = tuple(entry for entry in suite.entries if entry.task.name in wanted)
    assert len(entries) == len(wanted)
    result = run_suite(dataclasses.replace(suite, entries=entries), lab.model, progress=False)
    row = result.table.row("state, header", "full_centred")
    assert row.num_seeds == 2
    claims = [claim for claim in result.table.claims() if claim.startswith("Claim: ")]
    assert any("constant part" in claim and "full_centred against" in claim for claim in claims)
    assert any("Not built" in note and "latentqa" in note for note in result.table.notes)
    pairs = {(pair.task, pair.metric): pair for pair in result.table.comparisons}
    assert {task for task, _ in pairs} == set(wanted)
    header = pairs["state, header", "right"]
    assert header.difference.num_seeds == 2
    assert header.difference.n == row.n
    page = write_report(result, tmp_path).read_text()
    assert "full_uncentred" in page
    assert "Claim: centring lets an oracle read" in page


@pytest.mark.slow
def test_headers_are_alike_in_all_items_and_the_evidence_is_not(built, lab):
    suite = variant_suite(lab, built, quick=True, baselines=False)
    for name in HEADER_TASKS:
        (task,) = (entry.task for entry in suite.entries if entry.task.name == name)
        items = task.items(lab.model)
        assert len({item.activations.token_ids for item in items}) == 1
        assert "".join(items[0].activations.tokens) == "<|im_start|>assistant\n"
        assert not items[0].activations.vectors.equal(items[-1].activations.vectors)


@pytest.mark.slow
def test_a_folder_without_oracles_or_of_two_lengths_is_refused(built, tmp_path):
    lab = nano.load(kinds=())
    with pytest.raises(NanoWeightsError, match="--part variants"):
        load_variants(lab, tmp_path)
    shutil.copytree(built / "variants", tmp_path / "variants")
    one = tmp_path / "variants" / "full_centred-seed1"
    made = OracleContract.read(one)
    changed = dict(made.extra) | {"variant": {**made.extra["variant"], "steps": 9}}
    dataclasses.replace(made, extra=changed).write(one)
    with pytest.raises(NanoWeightsError, match=r"\[2, 9\]"):
        load_variants(lab, tmp_path)
    assert load_model().adapter_names == ()
