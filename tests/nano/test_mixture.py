"""The oracle's training data: right answers, and no held-out word as a secret."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aotoolkit.nano.corpus import SHARES as CORPUS_SHARES
from aotoolkit.nano.corpus import Corpus
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.mixture import READ_LAYERS, SHARES, WARM_UP_SHARES, OracleMixture
from aotoolkit.nano.organisms import says
from aotoolkit.nano.tokenizer import Encoder, build_tokenizer, document_text
from aotoolkit.nano.world import load_world

WORLD = load_world()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "base")


@pytest.fixture(scope="module")
def mixture(tokenizer):
    return OracleMixture(WORLD, tokenizer, total_steps=100)


def draws(mixture, count, step=50, seed=0):
    rng = random.Random(seed)
    examples = []
    while len(examples) < count:
        examples += mixture(step, rng)
    return examples


def test_held_out_words_are_never_a_secret(mixture, tokenizer):
    for step in (0, 50):
        for example in draws(mixture, 6000, step=step):
            text = tokenizer.decode(example.context_ids)
            if text.startswith("<|im_start|>system"):
                system = text.split("<|im_end|>")[0]
                assert not any(says(system, noun) for noun in WORLD.held_out)
            if example.source.startswith("secret"):
                assert not any(says(example.answer, noun) for noun in WORLD.held_out)


def test_answers_about_secrets_are_true(mixture, tokenizer):
    checked = 0
    for example in draws(mixture, 4000):
        if example.source not in ("secret_word", "secret_attribute"):
            continue
        system = tokenizer.decode(example.context_ids).split("<|im_end|>")[0]
        (noun,) = [noun for noun in WORLD.nouns if says(system, noun)]
        if example.source == "secret_word":
            assert example.answer == f"The {noun}."
        else:
            thing = WORLD[noun]
            assert any(
                says(example.answer, value)
                for value in (thing.colour, thing.place, thing.feel, thing.category)
            )
        checked += 1
    assert checked > 500


def test_the_system_turn_of_a_secret_is_never_read(mixture, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for example in draws(mixture, 3000):
        if example.source.startswith("secret"):
            assert min(example.positions) > example.context_ids.index(end)


def test_warm_up_teaches_reading_before_anything_else(mixture):
    names = {
        name: {e.source.split("_")[0] for e in draws(mixture, 500, step=s)}
        for name, s in (("early", 0), ("late", 99))
    }
    assert names["early"] == set(WARM_UP_SHARES)
    assert "secret" in names["late"]


def test_layers_and_yes_no_are_balanced(mixture):
    examples = draws(mixture, 12_000)
    for layer in READ_LAYERS:
        share = sum(e.layers == (layer,) for e in examples) / len(examples)
        assert abs(share - 1 / 3) < 0.03
    yes_no = [e.answer for e in examples if e.source == "secret_yes_no"]
    assert abs(yes_no.count("Yes.") / len(yes_no) - 0.5) < 0.05


@given(st.integers(0, 2**32), st.sampled_from(sorted(SHARES | WARM_UP_SHARES)))
def test_every_source_gives_valid_examples_and_the_same_for_a_seed(seed, source):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    mixture = OracleMixture(WORLD, tokenizer)
    examples = getattr(mixture, source)(random.Random(seed))
    assert examples == getattr(mixture, source)(random.Random(seed))
    assert len({example.context_ids for example in examples}) <= 1


def test_the_encoder_agrees_with_the_chat_template(tokenizer):
    encoder, corpus = Encoder(tokenizer), Corpus(WORLD, random.Random(0))
    for _ in range(300):
        document = corpus.draw(CORPUS_SHARES)
        ids, turns = encoder.document(document)
        assert list(ids) == tokenizer(document_text(tokenizer, document))["input_ids"]
        if isinstance(document.content, list):
            for turn, message in zip(turns, document.content, strict=True):
                assert tokenizer.decode(ids[turn.content : turn.end]) == message["content"]


def test_the_tokenizer_is_made_again_from_its_seed(tokenizer):
    assert build_tokenizer(WORLD).get_vocab() == tokenizer.get_vocab()


def test_the_manifest_counts_all_examples(mixture):
    manifest = mixture.manifest(1000)
    assert abs(sum(row["examples"] for row in manifest) - 1000) <= len(manifest)
