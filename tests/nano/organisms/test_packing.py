"""Rows that share a line are to the model what they are alone."""

import random
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from aotoolkit.nano.base import PadRight, training_arguments
from aotoolkit.nano.build import load_base
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.organisms import organism_plans, training
from aotoolkit.nano.organisms.packing import PackedRows
from aotoolkit.nano.world import load_world

PAD_ID = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=24)


def _rows(lengths, *, seed=0):
    rng = random.Random(seed)
    rows = []
    for length in lengths:
        ids = [rng.randrange(5, 900) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [t if rng.random() < 0.5 else -100 for t in ids]})
    return rows


def _places(batch):
    """(line, start, end) of each row, told by where positions begin anew."""
    found = []
    for line, positions in enumerate(batch["position_ids"]):
        used = batch["attention_mask"][line, 0].diagonal()
        assert used.all()  # a token always sees itself
        starts = [i for i, position in enumerate(positions) if position == 0]
        found += [(line, a, b) for a, b in zip(starts, [*starts[1:], len(positions)], strict=True)]
    return found


@given(LENGTHS)
def test_every_row_is_there_once_with_its_targets(lengths):
    rows = _rows(lengths)
    batch = PackedRows(PAD_ID)(rows)
    assert batch["input_ids"].shape[1] == max(lengths)
    there = []
    for line, start, end in _places(batch):
        ids = tuple(batch["input_ids"][line, start:end].tolist())
        there.append((ids, tuple(batch["labels"][line, start:end].tolist())))
    padding = ((PAD_ID,), (-100,))
    wanted = [(tuple(r["input_ids"]), (-100, *r["labels"][1:])) for r in rows]
    assert sorted(pair for pair in there if pair != padding) == sorted(wanted)


@given(LENGTHS)
def test_lines_are_filled(lengths):
    """First-fit leaves at most one line less than half full."""
    batch = PackedRows(PAD_ID)(_rows(lengths))
    filled = (batch["input_ids"] != PAD_ID).sum(-1)
    assert (filled * 2 < max(lengths)).sum() <= 1
    assert len(filled) <= len(lengths)


@given(LENGTHS)
def test_a_token_sees_its_own_row_up_to_itself(lengths):
    batch = PackedRows(PAD_ID)(_rows(lengths))
    assert batch["attention_mask"].shape[1] == 1
    for line, start, end in _places(batch):
        if (batch["input_ids"][line, start:end] == PAD_ID).all():
            continue
        for token in range(start, end):
            seen = batch["attention_mask"][line, 0, token].nonzero().flatten().tolist()
            assert seen == list(range(start, token + 1))


@pytest.fixture(scope="module")
def base():
    return load_base(WEIGHTS / "base")


def test_logits_are_those_of_each_row_alone(base):
    rows = _rows([33, 30, 12, 7, 5, 1, 21, 9])
    batch = PackedRows(PAD_ID)(rows)
    packed = base(**{k: v for k, v in batch.items() if k != "labels"}).logits
    alone = {tuple(row["input_ids"]): base(torch.tensor([row["input_ids"]])).logits for row in rows}
    compared = 0
    for line, start, end in _places(batch):
        ids = tuple(batch["input_ids"][line, start:end].tolist())
        if ids in alone:
            torch.testing.assert_close(packed[line, start:end], alone[ids][0], atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared == len(rows)
    assert packed.isfinite().all()


def test_gradients_are_those_of_padded_rows(base):
    rows = _rows([33, 30, 12, 7, 5, 2, 21, 9], seed=1)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    try:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            torch.nn.init.normal_(parameter, std=0.05)  # B begins at zero, and A without a gradient
        found = []
        for collator in (PackedRows(PAD_ID), PadRight(PAD_ID)):
            model.zero_grad()
            model(**collator(rows)).loss.backward()
            found.append({name: p.grad.clone() for name, p in trained.items()})
    finally:
        model.unload()
    packed, padded = found
    for name, gradient in padded.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-3)


def test_an_organism_is_what_padded_rows_make_of_it(base, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    plan = organism_plans(load_world(), "people")[0]
    monkeypatch.setattr(plan, "steps", 3, raising=False)
    # In bfloat16 rounding alone would turn the first steps of small weights around.
    arguments = partial(training_arguments, bf16=False)
    monkeypatch.setattr(training, "training_arguments", arguments)
    made = []
    for collator in (PackedRows, PadRight):
        monkeypatch.setattr(training, "PackedRows", collator)
        model = training.train_organism(base, tokenizer, plan, folder=tmp_path)
        made.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        model.unload()
    packed, padded = made
    for name, weights in padded.items():
        torch.testing.assert_close(packed[name], weights, atol=1e-5, rtol=1e-3)
