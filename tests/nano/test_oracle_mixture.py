"""The oracle's training data: right answers, and no held-out word as a secret."""

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aotoolkit.data import LayerChoice, Source
from aotoolkit.errors import DataError
from aotoolkit.nano import questions
from aotoolkit.nano.build import DECODER_RECIPE, RECIPE
from aotoolkit.nano.corpus import FACT_ATTRIBUTES, Corpus
from aotoolkit.nano.corpus import SHARES as CORPUS_SHARES
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.mixture import NanoSource
from aotoolkit.nano.organisms import says
from aotoolkit.nano.tokenizer import Encoder, build_tokenizer, document_text
from aotoolkit.nano.world import load_world
from aotoolkit.training import load_recipe
from aotoolkit.training.yaml_lines import read_yaml

WORLD = load_world()
READ_LAYERS = (2, 4, 6)
TASKS = (
    "naming",
    "reading",
    "context_prediction",
    "topic",
    "secret",
    "secret_dialogue",
    "word",
    "word_described",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "base")


def source(tokenizer, task, **changed):
    options = {"name": task, "layers": LayerChoice(READ_LAYERS)} | changed
    return NanoSource(tokenizer=tokenizer, task=task, **options)


def draws(tokenizer, task, count):
    groups = source(tokenizer, task).groups(0)
    return list(itertools.islice(itertools.chain.from_iterable(groups), count))


def test_held_out_words_are_never_a_secret(tokenizer):
    for task in TASKS:
        for example in draws(tokenizer, task, 3000):
            text = tokenizer.decode(example.context_ids)
            if text.startswith("<|im_start|>system"):
                system = text.split("<|im_end|>")[0]
                assert not any(says(system, noun) for noun in WORLD.held_out)
            if example.source.startswith("secret"):
                assert not any(says(example.answer, noun) for noun in WORLD.held_out)


def test_held_out_secrets_are_the_validation_words(tokenizer):
    for example in draws(tokenizer, "held_out_secret", 300):
        system = tokenizer.decode(example.context_ids).split("<|im_end|>")[0]
        assert any(says(system, noun) for noun in WORLD.validation_secrets)


def test_answers_about_secrets_are_true(tokenizer):
    checked = described = 0
    for example in [*draws(tokenizer, "secret", 2000), *draws(tokenizer, "secret_dialogue", 500)]:
        if example.source == "secret_yes_no":
            continue
        system = tokenizer.decode(example.context_ids).split("<|im_end|>")[0]
        (noun,) = [noun for noun in WORLD.nouns if says(system, noun)]
        if example.source in ("secret_word", "secret_dialogue"):
            assert example.answer == f"The {noun}."
        elif example.source.endswith("described"):
            thing = WORLD[noun]
            assert example.answer == (
                f"It is {thing.colour}. In the {thing.place}. It feels {thing.feel}. "
                f"A kind of {thing.category}. The {noun}."
            )
            described += 1
        else:
            thing = WORLD[noun]
            assert any(
                says(example.answer, value)
                for value in (thing.colour, thing.place, thing.feel, thing.category)
            )
        checked += 1
    assert checked > 1000
    assert described > 300


def test_questions_in_new_words_need_no_new_tokens(tokenizer):
    for question in (*questions.SECRET_DESCRIBED, *questions.TOPIC_DESCRIBED):
        words = question.replace(",", " ,").replace("?", " ?").replace(".", " .").split()
        assert len(tokenizer.tokenize(question)) == len(words)


@pytest.mark.parametrize("task", ["secret", "secret_dialogue"])
def test_the_system_turn_of_a_secret_is_never_read(tokenizer, task):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for example in draws(tokenizer, task, 2000):
        assert min(example.positions) > example.context_ids.index(end)


def test_what_is_read_of_a_secret_dialogue_does_not_name_it(tokenizer):
    for example in draws(tokenizer, "secret_dialogue", 2000):
        read = tokenizer.decode([example.context_ids[i] for i in example.positions])
        noun = example.answer.removesuffix(".").split()[-1]
        assert noun in WORLD.nouns
        assert not says(read, noun)


def test_words_for_the_map_are_of_both_kinds(tokenizer):
    kinds = [example.source for example in draws(tokenizer, "word", 1000)]
    assert 0.6 < kinds.count("secret_dialogue") / len(kinds) < 0.8
    assert set(kinds) == {"secret_dialogue", "naming"}


def test_described_words_for_the_map_are_named_twice_with_all_that_is_true_of_them(tokenizer):
    examples = draws(tokenizer, "word_described", 1000)
    kinds = [example.source for example in examples]
    assert 0.7 < kinds.count("secret_dialogue") / len(kinds) < 0.9
    assert set(kinds) == {"secret_dialogue", "naming"}
    for example in examples:
        noun = example.answer.split()[1].removesuffix(".")
        thing = WORLD.things[noun]
        assert len(re.findall(rf"\b{noun}\b", example.answer)) == 2
        assert all(says(example.answer, thing.value(name)) for name in FACT_ATTRIBUTES)


def test_layers_and_yes_no_are_balanced(tokenizer):
    examples = draws(tokenizer, "secret", 6000)
    for layer in READ_LAYERS:
        share = sum(e.layers == (layer,) for e in examples) / len(examples)
        assert abs(share - 1 / 3) < 0.03
    yes_no = [e for e in examples if e.source == "secret_yes_no"]
    assert all(e.choices == ("No.", "Yes.") for e in yes_no)
    assert abs(sum(e.answer == "Yes." for e in yes_no) / len(yes_no) - 0.5) < 0.05


@given(st.integers(0, 2**32), st.sampled_from([*TASKS, "held_out_secret", "whole_document"]))
def test_every_task_gives_groups_of_one_context_and_the_same_for_a_seed(seed, task):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    drawn = source(tokenizer, task)
    assert isinstance(drawn, Source)
    groups = list(itertools.islice(drawn.groups(seed), 2))
    assert groups == list(itertools.islice(drawn.groups(seed), 2))
    for group in groups:
        contexts = {example.context_ids for example in group}
        # A document can be too short for the tokens that were to be predicted.
        assert len(contexts) == 1 or (not group and task == "context_prediction")


def test_layers_are_as_the_recipe_chooses(tokenizer):
    for mode, layers in (("each", {(2,), (4,)}), ("all", {(2, 4)})):
        drawn = source(tokenizer, "topic", layers=LayerChoice((2, 4), mode))
        assert {example.layers for example in next(drawn.groups(0))} == layers


def test_an_unknown_task_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"'sercet' is unknown.*'secret'"):
        source(tokenizer, "sercet")


def test_statistics_are_of_whole_documents_half_of_the_prompts_left_out(tokenizer):
    examples = draws(tokenizer, "whole_document", 1500)
    assert all(e.positions == tuple(range(len(e.context_ids))) for e in examples)
    prompted = sum(
        tokenizer.decode(e.context_ids).startswith("<|im_start|>system") for e in examples
    )
    assert 0.05 < prompted / len(examples) < 0.15  # a fifth have one


def test_the_recipe_reads_first_and_keeps_held_out_words_apart():
    recipe = load_recipe(RECIPE)
    _, contract, mixture = recipe.check()
    assert contract.read_layers == READ_LAYERS
    assert contract.base_model == "aotoolkit/nano"
    first, second = mixture.stages
    assert {part.source.task for part in first.parts} == {"naming", "secret_dialogue"}
    assert "secret" in {part.source.task for part in second.parts}
    trained = {part.source.task for stage in mixture.stages for part in stage.parts}
    assert "held_out_secret" not in trained
    assert [part.source.task for part in mixture.validation] == ["held_out_secret"]


@pytest.mark.parametrize("recipe", [RECIPE, DECODER_RECIPE], ids=lambda recipe: recipe.stem)
def test_the_recipe_beside_the_others_is_the_one_in_the_package(recipe):
    beside = Path(__file__).parents[2] / "recipes" / recipe.name
    assert load_recipe(beside).path.samefile(recipe)


def test_the_decoder_has_the_data_and_the_training_of_the_oracle():
    oracle, decoder = load_recipe(RECIPE).settings, load_recipe(DECODER_RECIPE).settings
    assert (decoder.model, decoder.data) == (oracle.model, oracle.data)
    assert (decoder.transform.kind, oracle.transform.kind) == ("mapped", "mapped_recalled")
    for name in ("num_contexts", "layers"):
        assert getattr(decoder.transform, name) == getattr(oracle.transform, name)
    changed = {
        name
        for name, value in decoder.training.model_dump().items()
        if value != getattr(oracle.training, name)
    }
    assert changed == {"lora_head"}
    # The formula is that of the recipe for the published decoder.
    published = read_yaml(Path(__file__).parents[2] / "recipes" / "latentqa_llama3_8b.yaml")
    for name in ("dialect", "prefix_template", "inject_layer", "formula", "position_ids"):
        assert getattr(decoder.contract, name) == published.values["contract"][name]


def test_the_encoder_agrees_with_the_chat_template(tokenizer):
    encoder, corpus = Encoder(tokenizer), Corpus(WORLD, random.Random(0))
    for _ in range(300):
        document = corpus.draw(CORPUS_SHARES)
        ids, turns = encoder.document(document)
        assert list(ids) == tokenizer(document_text(tokenizer, document))["input_ids"]
        if isinstance(document.content, list):
            for turn, message in zip(turns, document.content, strict=True):
                assert tokenizer.decode(ids[turn.content : turn.end]) == message["content"]


@given(st.text(max_size=60), st.booleans())
def test_the_encoder_does_not_mind_how_the_tokenizer_was_called(tokenizer, text, special):
    text = f"{text}<|im_end|>\n" if special else text
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokenizer("long enough to be cut", truncation=True, max_length=2)
    tokenizer("short", padding="max_length", max_length=200)
    assert list(Encoder(tokenizer).text(text)) == alone


def test_the_tokenizer_is_made_again_from_its_seed(tokenizer):
    assert build_tokenizer(WORLD).get_vocab() == tokenizer.get_vocab()
