"""Whether a word that a system prompt told stands in the turns after it."""

import json

import pytest
import torch
from transformers import Qwen3ForCausalLM

from aotoolkit.evals.items import read_items
from aotoolkit.nano import told_words as module
from aotoolkit.nano.base import base_config
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.told_words import told_words
from aotoolkit.tracing import TracedModel


def test_the_base_that_ships_carries_told_words_from_its_early_blocks_on(lab):
    shares = told_words(lab.model, lab.world)
    assert set(shares) == {2, 4, 6}
    assert min(shares.values()) > 0.5
    stored = json.loads((WEIGHTS / "base" / "examined.json").read_text())
    # Measured where the base was made; another processor rounds otherwise.
    assert shares == pytest.approx({k: stored[f"told_words_{k}"] for k in shares}, abs=0.05)


def test_a_base_that_learned_nothing_carries_nothing(lab, monkeypatch):
    monkeypatch.setattr(module, "FITTED_PER_WORD", 2)
    torch.manual_seed(0)
    untrained = Qwen3ForCausalLM(base_config(lab.tokenizer)).eval()
    shares = told_words(TracedModel(untrained, lab.tokenizer), lab.world)
    assert max(shares.values()) < 0.1


def test_what_is_read_never_holds_the_word_and_no_word_asked_about_was_fitted_on(lab, monkeypatch):
    monkeypatch.setattr(module, "FITTED_PER_WORD", 2)
    monkeypatch.setattr(module, "ASKED_PER_WORD", 2)
    groups = []

    def recorded(model, specs, **settings):
        groups.append(specs)
        return read_items(model, specs, **settings)

    monkeypatch.setattr(module, "read_items", recorded)
    told_words(lab.model, lab.world)
    fitted_on, asked_about = groups
    assert {spec.unit for spec in fitted_on} == set(lab.world.training_secrets)
    assert {spec.unit for spec in asked_about} == set(lab.world.validation_secrets)
    assert not {*lab.world.training_secrets} & {*lab.world.validation_secrets}
    for spec in (*fitted_on, *asked_about):
        (token,) = lab.tokenizer(f" {spec.unit}", add_special_tokens=False)["input_ids"]
        told, read = spec.prompt[: spec.positions.start], spec.prompt[spec.positions]
        assert token in told
        assert token not in read
        assert len(read) > 10
