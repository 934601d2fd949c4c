"""Untrained oracle, patched prompts, linear probe, text-only reader, against hand calculations."""

import dataclasses

import numpy as np
import pytest
import tiny_items
import torch
from sklearn.linear_model import LogisticRegression

from aotoolkit.errors import (
    AdapterStateError,
    EvalError,
    IncompatibleActivationsError,
    LayerError,
    PlaceholderError,
)
from aotoolkit.evals.baselines import (
    PATCHSCOPES_IDENTITY,
    Carrier,
    LinearProbe,
    PatchedPrompt,
    TextReader,
    UntrainedOracle,
    prove_adapters_off,
)
from aotoolkit.oracle import Oracle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


def log_prob_by_hand(model, prompt: list[int], reply: list[int], adapter=None) -> float:
    logits = tiny_items.forward(model, prompt + reply, adapter)
    predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(predicted.gather(1, torch.tensor(reply)[:, None]).sum())


# Untrained oracle


def test_the_untrained_oracle_is_the_base_whatever_is_live(model):
    oracle = tiny_items.oracle(model)
    items = tiny_items.items(model, 2)
    arm = UntrainedOracle(oracle, max_new_tokens=4)
    plain = arm.answer(items)
    with model.using("red"):
        inside = arm.answer(items)
    assert [a.scores for a in plain] == [a.scores for a in inside]
    base = Oracle(model, None, oracle.contract)
    for item, answer in zip(items, plain, strict=True):
        chosen = base.choose(item.question, item.activations, item.choices).log_probs
        assert answer.scores == pytest.approx(dict(chosen), abs=1e-4)
        trained = oracle.choose(item.question, item.activations, item.choices).log_probs
        assert answer.scores != pytest.approx(dict(trained), abs=1e-2)


def test_an_adapter_that_takes_part_is_found(model):
    prove_adapters_off(model)
    layer = next(m for n, m in model.peft_model.named_modules() if n.endswith("0.mlp.up_proj"))
    own = layer.forward
    # What published code did: the adapter's part goes on although all says that it is off.
    layer.forward = lambda x: own(x) + layer.lora_B["red"](layer.lora_A["red"](x))
    with pytest.raises(AdapterStateError, match="takes part"):
        prove_adapters_off(model)
    assert layer.__dict__["forward"] is not own  # the proof leaves others' patches in place
    del layer.forward
    prove_adapters_off(model)


# Patched prompts


@pytest.mark.parametrize("inject_layers", [(0,), (0, 2), "read"])
def test_a_patched_prompt_is_a_replacement_by_a_plain_hook(model, inject_layers):
    items = tiny_items.items(model, 3)
    carrier = Carrier(text="Hi{vectors} {question}", reply="The word is")
    arm = PatchedPrompt(model, carrier=carrier, inject_layers=inject_layers, max_new_tokens=3)
    answers = arm.answer(items)
    tokenizer = model.tokenizer
    mark = tokenizer(" ?", add_special_tokens=False)["input_ids"]
    assert len(mark) == 1
    for item, answer in zip(items, answers, strict=True):
        text = (
            "<|im_start|>user\nHi ? ? ? What is the secret word?<|im_end|>\n"
            "<|im_start|>assistant\nThe word is"
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [i for i, token in enumerate(ids) if token == mark[0]][:3]
        vectors = item.activations.vectors[0]

        def write(_module, _args, output, places=places, vectors=vectors):
            output = output.clone()
            output[:, places] = vectors
            return output

        layers = (2,) if inject_layers == "read" else inject_layers
        blocks = tiny_items.reference(None).model.layers
        handles = [blocks[layer].register_forward_hook(write) for layer in layers]
        try:
            for choice in item.choices:
                reply = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
                assert answer.scores[choice] == pytest.approx(
                    log_prob_by_hand(model, ids, reply), abs=1e-3
                )
        finally:
            for handle in handles:
                handle.remove()


def test_the_same_carrier_with_other_vectors_answers_otherwise(model):
    items = tiny_items.items(model, 2)
    arm = PatchedPrompt(model, carrier=PATCHSCOPES_IDENTITY, max_new_tokens=3)
    first, second = arm.answer(items)
    assert first.scores != pytest.approx(second.scores, abs=1e-3)


def test_carriers_that_cannot_carry_are_refused(model):
    with pytest.raises(EvalError, match="once"):
        Carrier(text="nothing")
    with pytest.raises(EvalError, match="empty"):
        Carrier(text="{vectors}", placeholder="")
    with pytest.raises(EvalError, match="no turns"):
        Carrier(text="{vectors}", chat=False)
    with pytest.raises(LayerError, match="at least one"):
        PatchedPrompt(model, inject_layers=())
    items = tiny_items.items(model, 1)
    with pytest.raises(PlaceholderError, match="not one token"):
        PatchedPrompt(model, carrier=Carrier(text="{vectors}", placeholder="xyz")).answer(items)
    several = tiny_items.items(model, 1, layers=[1, 2])
    with pytest.raises(LayerError, match="Read one layer"):
        PatchedPrompt(model, inject_layers="read").answer(several)


# Linear probe


def read_base(model, texts):
    return model.activations(list(texts), layers=2, positions=slice(-2, None))


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_the_probe_is_standardised_logistic_regression(model, pool):
    texts = [f"{word} {tail}" for word in ("water", "word") for tail in ("a", "bc", "d", "ef")]
    labels = ["water"] * 4 + ["word"] * 4
    acts = read_base(model, texts)
    probe = LinearProbe.fit(acts, labels, pool=pool, regularisation=0.5)
    items = tiny_items.items(model, 2, choices=("water", "word"))
    answers = probe.answer(items)

    def pooled(vectors):
        return (vectors[0, -1] if pool == "last" else vectors[0].mean(0)).numpy()

    features = np.stack([pooled(a.vectors) for a in acts])
    mean, std = features.mean(0), features.std(0)
    by_hand = LogisticRegression(C=2.0, max_iter=2000).fit((features - mean) / std, labels)
    for item, answer in zip(items, answers, strict=True):
        row = (pooled(item.activations.vectors) - mean) / std
        expected = dict(zip(by_hand.classes_, by_hand.predict_log_proba([row])[0], strict=True))
        assert answer.scores == pytest.approx(expected, abs=1e-3)
        assert answer.text == answer.choice


@pytest.mark.parametrize("held", ["mean", "last"])
def test_the_probe_reads_a_span_where_the_label_is(model, held):
    rng = np.random.default_rng(0)
    labels = ["water", "word"] * 20
    text = "Give me a hint about the secret word"
    whole = model.activations(text, layers=2, positions=slice(-8, None))
    spans = []
    for label in labels:
        vectors = rng.normal(size=whole.vectors.shape) * (1 if held == "mean" else 4)
        # Weak in each vector of the span, or strong in its last and nowhere else.
        told = slice(None) if held == "mean" else slice(-1, None)
        vectors[:, told, 0] += (1 if label == "water" else -1) * (0.7 if held == "mean" else 8)
        spans.append(dataclasses.replace(whole, vectors=torch.tensor(vectors).float()))
    probe = LinearProbe.fit(spans[:30], labels[:30])
    assert probe.pool == held
    items = [
        dataclasses.replace(tiny_items.items(model, 1, choices=("water", "word"))[0], **values)
        for values in (
            {"activations": acts, "answers": (label,)}
            for acts, label in zip(spans[30:], labels[30:], strict=True)
        )
    ]
    right = [a.choice in i.answers for a, i in zip(probe.answer(items), items, strict=True)]
    assert sum(right) >= 8
    single = [acts[-1:] for acts in spans]
    assert LinearProbe.fit(single, labels, regularisation=1.0).pool == "last"


def test_a_probe_does_not_see_the_organism_in_fitting_nor_other_layers_in_reading(model):
    acts = read_base(model, ["water", "word"])
    organism = model.activations("water", layers=2, adapter="red")
    with pytest.raises(EvalError, match="fitted on the base"):
        LinearProbe.fit([acts[0], organism], ["water", "word"])
    with pytest.raises(EvalError, match="at least two"):
        LinearProbe.fit(acts, ["water", "water"])
    with pytest.raises(EvalError, match="different layers"):
        LinearProbe.fit([acts[0], model.activations("word", layers=1)], ["water", "word"])
    with pytest.raises(EvalError, match="one example only"):
        LinearProbe.fit(acts, ["water", "word"], pool="last")
    with pytest.raises(EvalError, match="as pool"):
        LinearProbe.fit(acts, ["water", "word"], regularisation=1.0)
    with pytest.raises(EvalError, match="pool is 'first'"):
        LinearProbe.fit(acts, ["water", "word"], pool="first")  # pyright: ignore[reportArgumentType]
    probe = LinearProbe.fit(acts, ["water", "word"], pool="last", regularisation=1.0)
    with pytest.raises(IncompatibleActivationsError, match="layers"):
        probe.answer(tiny_items.items(model, 1, layers=1))
    with pytest.raises(EvalError, match=r"not\s+fitted on"):
        probe.answer(tiny_items.items(model, 1))


# Text-only reader


def test_the_text_reader_sees_the_tokens_read_and_nothing_else(model):
    (item,) = tiny_items.items(model, 1, positions=None)
    arm = TextReader(model, template="Text: {text}\n{question}", max_new_tokens=3)
    (row,) = arm.rows([item])
    assert model.tokenizer.decode(row.token_ids) == (
        "<|im_start|>user\nText: user\nGive me a hint.\nassistant\nWhat is the secret word?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    (answer,) = arm.answer([item])
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for choice in item.choices:
        reply = [*model.tokenizer(choice, add_special_tokens=False)["input_ids"], end]
        assert answer.scores[choice] == pytest.approx(
            log_prob_by_hand(model, list(row.token_ids), reply), abs=1e-3
        )
    # The ids are of the target's tokenizer, which may be another than the reader's.
    elsewhere = dataclasses.replace(
        item.activations, token_ids=tuple(0 for _ in item.activations.token_ids)
    )
    assert arm.rows([dataclasses.replace(item, activations=elsewhere)])[0].token_ids == (
        row.token_ids
    )
    other = dataclasses.replace(item, activations=item.base_activations)
    assert arm.answer([other])[0].scores == answer.scores
    with pytest.raises(EvalError, match="question"):
        TextReader(model, template="{text}")


@pytest.mark.parametrize("given", ["text", "token ids"])
def test_the_text_reader_reads_characters_of_several_tokens(model, given):
    text = "Give me a hint: Zürich 東京 🌍!"
    ids = list(model.encode(text).token_ids)
    prompt = text if given == "text" else ids
    read = model.activations(prompt, layers=2)
    assert "\ufffd" in "".join(read.tokens)
    end = len(ids)
    for positions, expected in (
        (range(end), text),
        (range(2, end), text.removeprefix(text[: read.offsets[2][0]]).strip()),
        ([0, 1, *range(end - 6, end)], None),
    ):
        (item,) = tiny_items.items(model, 1)
        item = dataclasses.replace(item, activations=read.at(list(positions)))
        (row,) = TextReader(model, template="{text}|{question}").rows([item])
        shown = model.tokenizer.decode(row.token_ids).partition("|What")[0]
        shown = shown.removeprefix("<|im_start|>user\n")
        assert "\ufffd" not in shown
        if expected is None:
            expected = text[: read.offsets[1][1]] + text[read.offsets[end - 6][0] :]
        assert shown == expected.strip()
