"""The sweep on the embedded oracle: what it finds, that it goes on, what it writes."""

import dataclasses
import json
import random
import shutil

import pytest
import torch

import aotoolkit as ao
from aotoolkit.data import Example
from aotoolkit.errors import LayerError, SweepError
from aotoolkit.evals.sweep import SweepResult, apply_recommended, sweep
from aotoolkit.nano.corpus import Corpus
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.tokenizer import Encoder
from aotoolkit.oracle import Oracle, OracleContract
from aotoolkit.oracle.confidence import Calibration

QUIET = {"progress": False}
QUESTION = "What is the secret word?"


@pytest.fixture(scope="module")
def lab():
    return ao.nano.load()


@pytest.fixture(scope="module")
def examples(lab) -> list[Example]:
    """Dialogues whose system prompt, which is not read, hides a word."""
    rng, encoder = random.Random(5), Encoder(lab.model.tokenizer)
    made = []
    for _ in range(12):
        secrets = lab.world.training_secrets
        document = Corpus(lab.world, rng, nouns=secrets, secrets=secrets).secret()
        ids, turns = encoder.document(document)
        reply = next(turn for turn in turns[1:] if turn.role == "assistant")
        made += [
            Example(
                context_ids=ids,
                positions=tuple(range(turns[1].start, end)),
                layers=(2,),
                question=QUESTION,
                answer=f"The {document.secret}.",
                source="secret_word",
            )
            for end in (reply.content, reply.end)
        ]
    return made


@pytest.fixture(scope="module")
def swept(lab, examples, tmp_path_factory) -> SweepResult:
    folder = tmp_path_factory.mktemp("swept")
    return sweep(
        lab.oracle,
        examples,
        layers=(2, 4),
        windows=(1, "all"),
        coefficients=(0.0, 1.0),
        folder=folder,
        **QUIET,
    )


def by_setting(result):
    return {(c.setting.layers[0], c.setting.window, c.setting.coefficient): c for c in result.cells}


def test_reading_with_activations_beats_reading_none(swept):
    best = swept.best
    assert best.setting.window == "all"
    assert best.setting.coefficient == 1.0
    # Without vectors it says the same to all of twelve words, and may be right once.
    by_guessing = pytest.approx(1 / 12)
    assert best.exact_match_without.mean in (0, by_guessing)
    assert best.exact_match_gain.low > 0.1
    assert best.exact_match.n == 12
    assert best.num_examples == 24
    for (_, _, coefficient), cell in by_setting(swept).items():
        if coefficient == 0:  # nothing is added, so the placeholders say nothing
            assert cell.exact_match.mean in (0, by_guessing)
    assert 0 < swept.expected.mean <= best.exact_match.mean


def test_figures_are_those_of_asking_by_hand(lab, examples, swept):
    cell = by_setting(swept)[4, 1, 1.0]
    right = []
    for example, reply in zip(examples, cell.replies, strict=True):
        at = example.positions[-1]
        ids = list(example.context_ids)
        acts = lab.model.activations(ids, layers=4, positions=[at])
        answer = lab.oracle.ask(QUESTION, acts, controls=False, max_new_tokens=8)
        assert reply == answer.text
        right.append(float(answer.text == example.answer))
    assert cell.exact_match.mean == pytest.approx(sum(right) / len(right))


def test_the_table_and_the_files_hold_the_same(swept, tmp_path):
    table = swept.to_pandas()
    assert len(table) == 8
    row = table.sort_values("exact_match").iloc[-1]
    assert row["exact_match"] == swept.best.exact_match.mean
    assert row["exact_match_gain_low"] == swept.best.exact_match_gain.low
    swept.save(tmp_path)
    assert SweepResult.load(tmp_path) == swept
    assert (tmp_path / "sweep.csv").read_text().count("\n") == 9
    assert json.loads(json.dumps(swept.to_dict()))["best"]["setting"]["window"] == "all"


def test_a_stopped_sweep_goes_on(lab, examples, swept, tmp_path, monkeypatch):
    options = {"layers": (2, 4), "windows": (1, "all"), "coefficients": (0.0, 1.0), **QUIET}
    ask, asked = Oracle.ask, []

    def stopping(self, *args, **kwargs):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(kwargs)
        return ask(self, *args, **kwargs)

    monkeypatch.setattr(Oracle, "ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(lab.oracle, examples, folder=tmp_path, **options)
    assert SweepResult.load(tmp_path).cells == swept.cells[:3]
    asked[:] = [{}] * 4  # counts on, without a stop
    assert sweep(lab.oracle, examples, folder=tmp_path, **options) == swept
    assert len(asked) == 4 + 5
    # The replies without activations are generated once for each layer.
    assert [kwargs["controls"] for kwargs in asked[4:]] == [False, ("no_activation",), *[False] * 3]
    with pytest.raises(SweepError, match="examples differ"):
        sweep(lab.oracle, examples[2:], folder=tmp_path, **options)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SweepError, match="damaged"):
        sweep(lab.oracle, examples, folder=tmp_path, **options)


def test_sampling_repeats_and_leaves_the_generator_alone(lab, examples):
    state = torch.random.get_rng_state()
    options = {"layers": (2,), "windows": ("all",), "temperatures": (0.0, 1.5), **QUIET}
    first, second = (sweep(lab.oracle, examples[:6], **options) for _ in range(2))
    assert first == second
    assert first.cells[0].replies != first.cells[1].replies
    assert torch.equal(state, torch.random.get_rng_state())


def test_windows_that_read_the_same_are_tried_once(lab, examples):
    narrow = [dataclasses.replace(e, positions=e.positions[-2:]) for e in examples[:4]]
    made = dataclasses.replace(narrow[0], evidence="zero", question="Which word?")
    twice = dataclasses.replace(narrow[0], layers=(6,))
    result = sweep(
        lab.oracle, [*narrow, made, twice], layers=(0.5,), windows=(1, 2, 10, "all"), **QUIET
    )
    assert [cell.setting.window for cell in result.cells] == [1, "all"]
    assert result.cells[0].setting.layers == (4,)
    assert result.best.num_examples == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": (0,)}, "windows"),
        ({"windows": "all"}, "windows"),
        ({"windows": (True,)}, "windows"),
        ({"windows": ()}, "windows"),
        ({"windows": (1, 1)}, "twice"),
        ({"coefficients": (float("nan"),)}, "coefficients"),
        ({"temperatures": (-1.0,)}, "temperatures"),
        ({"layers": ((2, 4),)}, "one layer in a prompt"),
        ({"match": "loose"}, "match"),
        ({"sources": ("secrets",)}, "secret_word"),
    ],
)
def test_settings_that_make_no_sense_are_refused(lab, examples, options, message):
    with pytest.raises(SweepError, match=message):
        sweep(lab.oracle, examples, **options, **QUIET)


def test_no_examples_and_no_layer_are_refused(lab, examples):
    with pytest.raises(SweepError, match="none is left"):
        sweep(lab.oracle, [], **QUIET)
    with pytest.raises(SweepError, match="none is left"):
        sweep(lab.oracle, [dataclasses.replace(examples[0], evidence="random")], **QUIET)
    with pytest.raises(LayerError, match="out of range"):
        sweep(lab.oracle, examples, layers=(8,), **QUIET)


def test_an_oracle_asks_as_the_sweep_found_best(lab, examples, swept, tmp_path):
    folder = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    cell = by_setting(swept)[4, 1, 1.0]  # another than the contract's own
    gained = dataclasses.replace(
        cell,
        setting=dataclasses.replace(cell.setting, window=3, coefficient=1.5),
        replies=swept.answers,
    )
    recommended = apply_recommended(folder, dataclasses.replace(swept, cells=(gained,)))
    assert OracleContract.read(folder).recommended == recommended
    assert OracleContract.read(folder).extra["sweep"]["examples"] == 24
    oracle = Oracle.from_pretrained(folder, model=lab.model)
    try:
        acts = lab.model.activations(list(examples[0].context_ids), layers=(2, 4))
        by_default = oracle.ask(QUESTION, acts)
        assert by_default.layers == (4,)
        assert by_default.positions == acts.positions[-3:]
        assert by_default.provenance["oracle"]["coefficient"] == 1.5
        assert by_default.log_prob == pytest.approx(
            lab.oracle.ask(QUESTION, acts.layer(4), window=3, coefficient=1.5).log_prob, rel=1e-4
        )
    finally:
        lab.model.delete_adapter(oracle.adapter)


def test_a_calibration_does_not_make_it_another_oracle(swept, tmp_path):
    folder = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    contract = OracleContract.read(folder)
    fitted = Calibration(
        kind="log_probability",
        temperature=2.0,
        n=20,
        unit="word",
        num_items=20,
        log_loss_before=0.7,
        log_loss_after=0.6,
    )
    contract.with_calibration(fitted).write(folder)
    assert OracleContract.read(folder).calibrations
    silent = tuple(c for c in swept.cells if c.setting.coefficient == 0)
    with pytest.raises(SweepError, match="which may be none"):
        apply_recommended(folder, dataclasses.replace(swept, cells=silent))


def test_only_the_oracle_that_was_swept_gets_the_recommendation(swept, tmp_path):
    folder = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    before = (folder / "oracle_contract.json").read_text()
    other = {**swept.identity, "contract": "0" * 64}
    with pytest.raises(SweepError, match="another oracle"):
        apply_recommended(folder, dataclasses.replace(swept, identity=other))
    silent = [c for c in swept.cells if c.setting.coefficient == 0]
    with pytest.raises(SweepError, match="which may be none"):
        apply_recommended(folder, dataclasses.replace(swept, cells=tuple(silent)))
    alone = dataclasses.replace(swept, groups=(0,) * len(swept.groups))
    with pytest.raises(SweepError, match="one group"):
        apply_recommended(folder, alone)
    assert (folder / "oracle_contract.json").read_text() == before


def saved(folder, *, cells: int, without, seed: int = 0, identity=None) -> SweepResult:
    """A sweep whose replies are coins; `without` makes those without activations."""
    rng = random.Random(seed)
    values = {
        "format": 1,
        "match": "exact",
        "identity": identity or {},
        "answers": ["Yes"] * 40,
        "groups": list(range(40)),
        "cells": [
            {
                "setting": {
                    "layers": [layer],
                    "window": "all",
                    "coefficient": 1.0,
                    "temperature": 0.0,
                },
                "replies": [rng.choice(("Yes", "No")) for _ in range(40)],
                "replies_without": [without(rng) for _ in range(40)],
            }
            for layer in range(cells)
        ],
    }
    (folder / "sweep.json").write_text(json.dumps(values))
    return SweepResult.load(folder)


def test_the_best_of_many_coins_is_expected_to_be_a_coin(tmp_path):
    result = saved(tmp_path, cells=60, without=lambda _: "No")
    assert result.best.exact_match.mean >= 0.65
    assert result.expected.low < 0.5 < result.expected.high
    assert result.expected_gain == dataclasses.replace(
        result.expected, low=result.expected_gain.low, high=result.expected_gain.high
    )


def test_the_best_of_many_coins_is_not_recommended(swept, tmp_path):
    folder = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    lucky = written = 0
    for seed in range(20):
        result = saved(
            tmp_path,
            cells=8,
            without=lambda rng: rng.choice(("Yes", "No")),
            seed=seed,
            identity=swept.identity,
        )
        lucky += result.best.exact_match_gain.mean > 0
        try:
            apply_recommended(folder, result)
        except SweepError:
            continue
        written += 1
    assert lucky >= 15
    assert written <= 2
