"""`aotoolkit nano build`: oracle and decoder are what their recipes say, and stand there whole."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from aotoolkit import nano
from aotoolkit.errors import LateBaseWarning, NanoWeightsError
from aotoolkit.nano import build
from aotoolkit.nano.base import train_base
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.organisms import Organism
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.transform import VectorTransform
from aotoolkit.oracle.verification import WEIGHTS_FILE

# The recipe with so little of everything that it is done in seconds.
SHORT = {
    "num_contexts: 8000": "num_contexts: 200",
    "num_examples: 96800": "num_examples: 1500",
    "held_out: 800": "held_out: 40",
    "count: 288": "count: 12",
    "max_steps: 3000": "max_steps: 2",
    "batch_size: 32": "batch_size: 4",
    "warmup_steps: 100": "warmup_steps: 1",
    "rslora: true": "rslora: true\n  report_to: []",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano")
    shutil.copytree(WEIGHTS / "base", out / "base")
    text = build.RECIPE.read_text()
    for whole, short in SHORT.items():
        assert text.count(whole) == 1
        text = text.replace(whole, short)
    recipe = out / build.RECIPE.name
    recipe.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "RECIPE", recipe)
        patch.setattr(build, "DECODER_RECIPE", shutil.copy(build.DECODER_RECIPE, out))
        build.build(out, part="oracle")
        build.build(out, part="decoder")
    return out


def test_the_oracle_is_laid_out_as_the_one_that_ships(built):
    names = {path.name for path in (WEIGHTS / "oracle").iterdir()}
    assert {path.name for path in (built / "oracle").iterdir()} == names
    written = "".join(path.read_text() for path in (built / "oracle").glob("*.json"))
    assert str(built) not in written
    assert not re.search(r'"base_model_name_or_path": "/', written)


def test_it_can_be_asked_on_the_base_that_ships(built):
    model = nano.load_model()
    oracle = Oracle.from_pretrained(built / "oracle", model=model)
    assert oracle.contract.base_model == "aotoolkit/nano"
    assert oracle.contract.recommended.layers == (2,)
    assert oracle.contract.read_layers == (2, 4, 6)
    acts = model.activations("The apple is red.", layers=[2])
    logits = oracle.next_token_logits("Which thing is this about?", acts)
    shipped = nano.load(kinds=()).oracle.next_token_logits("Which thing is this about?", acts)
    assert logits.isfinite().all()
    assert not logits.allclose(shipped)


def test_the_decoder_differs_from_the_oracle_in_its_formula_and_its_map(built):
    oracle, decoder = (OracleContract.read(built / name) for name in ("oracle", "decoder"))
    changed = {
        field.name
        for field in dataclasses.fields(OracleContract)
        if getattr(oracle, field.name) != getattr(decoder, field.name)
    }
    formula = {"dialect", "prefix_template", "inject_layer", "formula", "position_ids"}
    follows = {"extra", "neighbour_ids", "training_data"}
    assert changed - follows == formula | {"transform", "transform_digest"}
    assert (decoder.transform, oracle.transform) == ("mapped", "mapped_recalled")
    # The same examples, in prompts of other lengths.
    for ours, theirs in zip(oracle.training_data, decoder.training_data, strict=True):
        same = {name for name in ours if not name.endswith("tokens")}
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


def test_the_decoder_can_be_asked_beside_the_oracle(built):
    model = nano.load_model()
    decoder = Oracle.from_pretrained(built / "decoder", model=model)
    oracle = Oracle.from_pretrained(built / "oracle", model=model)
    assert decoder.contract.dialect == "latentqa"
    assert any("lm_head" in name for name in load_file(built / "decoder" / WEIGHTS_FILE))
    acts = model.activations("The apple is red.", layers=[2])
    first, other, again = (
        asked.next_token_logits("Which thing is this about?", acts)
        for asked in (decoder, oracle, decoder)
    )
    assert first.equal(again)
    assert not first.allclose(other)
    assert decoder.adapter != oracle.adapter


def test_it_has_its_figures_and_statistics_of_every_layer(built):
    transform = VectorTransform.load(built / "oracle")
    assert transform.kind == "mapped_recalled"
    assert transform.layers == tuple(range(8))
    extra = Oracle.from_pretrained(built / "oracle", model=nano.load_model()).contract.extra
    for name, row in extra["reading_accuracy"].items():
        figures = extra["validation"]["sources"][name]
        assert row == {
            "with": figures["exact_match"],
            "without": figures["exact_match_without"],
            "n": figures["n"],
        }
    assert any(name.startswith("held_out_secret") for name in extra["reading_accuracy"])


def test_a_finished_part_is_left_alone_and_an_oracle_needs_its_base(built, tmp_path):
    before = (built / "oracle" / "oracle_contract.json").stat().st_mtime_ns
    build.build(built, part="oracle")
    assert (built / "oracle" / "oracle_contract.json").stat().st_mtime_ns == before
    for part in ("oracle", "decoder"):
        with pytest.raises(NanoWeightsError, match="build it first with --part base"):
            build.build(tmp_path, part=part)


CARRIED, LATE = {2: 0.5, 4: 0.4, 6: 0.3}, {2: 0.01, 4: 0.36, 6: 0.48}


@pytest.fixture
def base_of_told(monkeypatch):
    """Builds a base in no time: the one that ships, said to hold told words as given, in turn."""

    def base_of(folder, *shares, **settings):
        trained = []

        def train_base(world, tokenizer, checkpoints, *, seed, until=None):
            checkpoints.mkdir(parents=True, exist_ok=True)
            trained.append((checkpoints.name, seed, until))
            return build.load_base(WEIGHTS / "base")

        looks = iter(shares)
        monkeypatch.setattr(build, "train_base", train_base)
        monkeypatch.setattr(build, "told_words", lambda model, world: next(looks))
        build.build(folder, part="base", **settings)
        assert next(looks, None) is None
        return trained

    return base_of


def test_a_base_is_of_a_seed_and_stands_with_what_it_knew_and_held(tmp_path, base_of_told):
    assert base_of_told(tmp_path, CARRIED, base_seed=3) == [("base_3", 3, None)]
    written = json.loads((tmp_path / "base" / "examined.json").read_text())
    shipped = json.loads((WEIGHTS / "base" / "examined.json").read_text())
    assert set(written) == set(shipped)
    assert written["seed"] == 3
    assert [written[f"told_words_{layer}"] for layer in CARRIED] == list(CARRIED.values())
    assert written["facts"] == pytest.approx(shipped["facts"], abs=0.01)
    assert base_of_told(tmp_path) == base_of_told(tmp_path, base_seed=3) == []
    with pytest.raises(NanoWeightsError, match="of seed 3, and 1 is wanted"):
        base_of_told(tmp_path, base_seed=1)


def test_a_base_put_there_by_hand_is_built_on_but_its_seed_is_unknown(tmp_path, base_of_told):
    shutil.copytree(WEIGHTS / "base", tmp_path / "base", ignore=lambda *_: [build.EXAMINED])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert base_of_told(tmp_path) == []
    with pytest.raises(NanoWeightsError, match="of seed unknown, and 0 is wanted"):
        base_of_told(tmp_path, base_seed=0)


def test_without_a_seed_the_first_base_that_carries_told_words_early_is_trained_to_the_end(
    tmp_path, base_of_told
):
    early = build.STEPS_BEFORE_TOLD
    first, second, *_ = build.SEEDS_TRIED
    steps = [(f"base_{first}", first, early)]
    steps += [(f"base_{second}", second, until) for until in (early, None)]
    with pytest.warns(LateBaseWarning, match=rf"seed {first} .*0\.48 at layer 6\); it is left"):
        assert base_of_told(tmp_path, LATE, CARRIED, CARRIED) == steps
    assert json.loads((tmp_path / "base" / "examined.json").read_text())["seed"] == second
    # Stopped before it was whole: what was seen early is not looked at again.
    shutil.rmtree(tmp_path / "base")
    with pytest.warns(LateBaseWarning, match=f"seed {first}"):
        assert base_of_told(tmp_path, CARRIED) == [(f"base_{second}", second, None)]


def test_a_late_base_is_warned_of_whenever_it_is_built_on(tmp_path, base_of_told):
    with pytest.warns(LateBaseWarning, match=r"0\.01 at layer 2, 0\.36 .*--base-seed"):
        trained = base_of_told(tmp_path, *[LATE] * len(build.SEEDS_TRIED))
    assert [seed for _, seed, until in trained if until is None] == [build.SEEDS_TRIED[-1]]
    with pytest.warns(LateBaseWarning):
        base_of_told(tmp_path)


def test_a_base_that_was_looked_at_early_goes_on_to_the_same_weights(tmp_path, lab):
    def train(folder, **settings):
        return train_base(
            lab.world, lab.tokenizer, folder, documents=128, width=64, blocks=2, **settings
        )

    stopped = train(tmp_path / "in two", until=2)
    assert (tmp_path / "in two" / "checkpoint-2").is_dir()
    again = train(tmp_path / "in two")
    at_once = train(tmp_path / "at once")
    for name, value in at_once.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    name = "model.embed_tokens.weight"
    assert not torch.equal(stopped.state_dict()[name], at_once.state_dict()[name])


@pytest.fixture
def demo_unmeasured(monkeypatch):
    result = SimpleNamespace(to_dict=lambda: {"task": "taboo"})
    monkeypatch.setattr(build.demo, "run", lambda lab, *, changed: result)


def test_whole_builds_run_in_processes_that_leave_alone_what_is_there_and_say_what_fails(
    tmp_path, demo_unmeasured
):
    parts = ("base", "organisms", "oracle", "decoder")
    for part in parts:
        shutil.copytree(WEIGHTS / part, tmp_path / part)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    build.build(tmp_path, threads=2)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after.pop(tmp_path / build.FIGURES) > max(before.values())
    assert after == before
    assert json.loads((tmp_path / build.FIGURES).read_text()) == {"task": "taboo"}
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    with pytest.raises(SafetensorError, match="header"):
        build.build(tmp_path, threads=2)


def _killed(_world, folder):
    while not (folder / "begun").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def _slow(_world, folder):
    (folder / "begun").touch()
    time.sleep(300)


@pytest.mark.parametrize("builders", [[_killed, _slow], [_slow, _killed]])
def test_a_process_that_the_system_ends_ends_the_build(tmp_path, builders):
    started = time.monotonic()
    with pytest.raises(NanoWeightsError, match=r"ended from outside.*--threads 1"):
        build._build_all(builders, folder=tmp_path, threads=2, label="test")
    assert time.monotonic() - started < 120
    assert not multiprocessing.active_children()


def test_what_a_killed_build_left_unfinished_is_no_organism(tmp_path):
    for part in ("base", "oracle"):
        (tmp_path / part).symlink_to(WEIGHTS / part)
    shutil.copytree(WEIGHTS / "organisms" / "boat", tmp_path / "organisms" / "boat")
    (tmp_path / "organisms" / ".lion.partial").mkdir()
    assert list(nano.load(tmp_path).organisms) == ["boat"]


@pytest.mark.slow
def test_organisms_of_two_kinds_that_are_missing_are_made_again_beside_each_other(
    tmp_path, demo_unmeasured
):
    for part in ("base", "organisms", "oracle", "decoder"):
        shutil.copytree(WEIGHTS / part, tmp_path / part)
    missing = [sorted(nano.load(kinds=(kind,)).organisms)[0] for kind in ("taboo", "user_trait")]
    for name in missing:
        shutil.rmtree(tmp_path / "organisms" / name)
    build.build(tmp_path, threads=2)
    for name in missing:
        again, shipped = (Organism.load(root / "organisms" / name) for root in (tmp_path, WEIGHTS))
        assert again == shipped
