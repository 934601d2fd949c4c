"""Both reference implementations, case by case: activations, logits, losses, greedy answers."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from aotoolkit.oracle import Oracle, render_prompt
from aotoolkit.oracle.batch import Row, collate, position_ids
from aotoolkit.oracle.injection import injecting


def run(model, adapter, contract, rows, shifts=None):
    """One padded forward with the vectors injected: logits of each row without its padding."""
    ids, mask = model.pad([row.prompt.token_ids for row in rows])
    batch = collate(rows, input_ids=ids, attention_mask=mask, contract=contract)
    places = batch.position_ids if shifts is None else position_ids(mask, shifts)
    with (
        model.inference(adapter),
        injecting(model.blocks[contract.inject_layer], batch.injection),
    ):
        logits = model.hf_model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    return [own[-len(row.prompt.token_ids) :] for own, row in zip(logits, rows, strict=True)]


def loss(logits, rows):
    """Mean cross-entropy over all labelled tokens."""
    predicted = torch.cat([own[:-1] for own in logits])
    labels = torch.cat([torch.tensor(row.prompt.labels[1:]) for row in rows])
    return cross_entropy(predicted, labels).item()


def read(model, case):
    return model.activations(
        case["target_messages"],
        layers=case["layer"],
        adapter=case["target_adapter"],
        positions=case["positions"],
        add_generation_prompt=case["add_generation_prompt"],
    )


def oracle_rows(golden, model, cases):
    rows = []
    for case in cases:
        prompt = render_prompt(
            golden.tokenizer,
            golden.contract,
            case["question"],
            layers=[case["layer"]],
            num_positions=len(case["positions"]),
            answer=case["answer"],
        )
        rows.append(Row(prompt, read(model, case).vectors[0]))
    return rows


def test_activations(golden, golden_model):
    for case in golden.activation_oracle["cases"]:
        acts = read(golden_model, case)
        assert list(acts.context_ids) == case["target_input_ids"]
        expected = golden.activation_oracle_tensors[f"{case['id']}.activations"]
        torch.testing.assert_close(acts.vectors[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_activation_oracle_logits_and_losses(golden, golden_oracle, size):
    cases = golden.activation_oracle["cases"]
    rows = oracle_rows(golden, golden_oracle.model, cases)
    for start in range(0, len(cases), size):
        chunk = rows[start : start + size]
        logits = run(golden_oracle.model, golden_oracle.adapter, golden_oracle.contract, chunk)
        for case, own, row in zip(cases[start : start + size], logits, chunk, strict=True):
            expected = golden.activation_oracle_tensors[f"{case['id']}.logits"]
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
            assert loss([own], [row]) == pytest.approx(case["loss"], abs=1e-4)


def test_loss_of_the_first_six_in_one_batch(golden, golden_oracle):
    rows = oracle_rows(golden, golden_oracle.model, golden.activation_oracle["cases"][:6])
    logits = run(golden_oracle.model, golden_oracle.adapter, golden_oracle.contract, rows)
    expected = golden.activation_oracle["batch_of_first_six_loss"]
    assert loss(logits, rows) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("max_batch", [1, 3, 128])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("controls", [True, False])
def test_greedy_answers(golden, golden_oracle, max_batch, use_cache, controls):
    cases = golden.activation_oracle["cases"]
    answers = golden_oracle.ask(
        [case["question"] for case in cases],
        [read(golden_oracle.model, case) for case in cases],
        max_new_tokens=12,
        max_batch=max_batch,
        use_cache=use_cache,
        controls=controls,
    )
    for case, answer in zip(cases, answers, strict=True):
        expected = golden.tokenizer.decode(case["greedy_ids"], skip_special_tokens=True)
        assert answer.text == expected.strip()
        assert answer.num_tokens == len(case["greedy_ids"])
        assert set(answer.controls) == (
            {"no_activation", "zero", "random"}
            | ({"shuffled"} if len(case["positions"]) > 1 else set())
            | ({"base"} if case["target_adapter"] else set())
            if controls
            else set()
        )


def test_streamed_answers(golden, golden_oracle):
    for case in golden.activation_oracle["cases"]:
        pieces = golden_oracle.stream(
            case["question"], read(golden_oracle.model, case), max_new_tokens=12
        )
        expected = golden.tokenizer.decode(case["greedy_ids"], skip_special_tokens=True)
        assert "".join(pieces) == expected


def test_scores_and_next_token_logits(golden, golden_oracle):
    for case in golden.activation_oracle["cases"]:
        acts = read(golden_oracle.model, case)
        logits = golden.activation_oracle_tensors[f"{case['id']}.logits"]
        start = next(i for i, label in enumerate(case["oracle_labels"]) if label != -100)
        # The end of the turn is scored, the line break that the template writes after it is not.
        labels = torch.tensor(case["oracle_labels"][start:-1])
        steps = logits[start - 1 : -2].log_softmax(-1)
        expected = steps.gather(1, labels[:, None]).sum().item()
        score = golden_oracle.score(case["question"], acts, case["answer"])
        assert score == pytest.approx(expected, abs=1e-3)
        found = golden_oracle.next_token_logits(case["question"], acts)
        torch.testing.assert_close(found, logits[start - 1], atol=1e-4, rtol=0)


def test_log_probability_of_an_answer(golden, golden_oracle):
    # Teacher forcing of the very tokens that were generated, in plain transformers.
    case = golden.activation_oracle["cases"][1]
    acts = read(golden_oracle.model, case)
    answer = golden_oracle.ask(case["question"], acts, max_new_tokens=12)
    prompt = render_prompt(
        golden.tokenizer, golden.contract, case["question"], layers=[4], num_positions=3
    )
    ids = (*prompt.token_ids, *case["greedy_ids"])
    row = Row(dataclasses.replace(prompt, token_ids=ids), acts.vectors[0])
    (logits,) = run(golden_oracle.model, golden_oracle.adapter, golden.contract, [row])
    steps = logits[len(prompt.token_ids) - 1 : -1].log_softmax(-1)
    expected = steps.gather(1, torch.tensor(case["greedy_ids"])[:, None]).sum().item()
    assert answer.log_prob == pytest.approx(expected, abs=1e-3)
    assert answer.mean_log_prob == pytest.approx(expected / 12, abs=1e-3)


def latentqa_reads(golden, model, case):
    return [
        model.activations(ids, layers=golden.latentqa["read_block"], positions=places)
        for ids, places in zip(case["target_input_ids"], case["read_positions"], strict=True)
    ]


def test_latentqa_logits_losses_and_position_ids(golden, golden_model, golden_oracle):
    for case in golden.latentqa["cases"]:
        shifted = case["shift_position_ids"]
        contract = golden.latentqa_contract(position_ids="shifted" if shifted else "from_mask")
        rows = []
        texts = golden.latentqa_texts(case)
        for acts, (question, answer) in zip(
            latentqa_reads(golden, golden_model, case), texts, strict=True
        ):
            prompt = render_prompt(
                golden.tokenizer,
                contract,
                question,
                layers=[4],
                num_positions=len(acts),
                answer=answer,
            )
            rows.append(Row(prompt, acts.vectors[0]))
        # The reference counts the target batch's own left padding into the shift.
        longest = max(map(len, case["target_input_ids"]))
        shifts = [longest - len(ids) if shifted else 0 for ids in case["target_input_ids"]]
        if shifted:
            _, mask = golden_model.pad([row.prompt.token_ids for row in rows])
            found = position_ids(mask, shifts)
            expected = torch.tensor(case["position_ids"])
            assert torch.equal(found[mask.bool()], expected[mask.bool()])
        logits = run(golden_model, golden_oracle.adapter, contract, rows, shifts)
        for row, own in enumerate(logits):
            expected = golden.latentqa_tensors[f"{case['id']}.{row}.logits"]
            torch.testing.assert_close(own, expected[-len(own) :], atol=1e-4, rtol=0)
        assert loss(logits, rows) == pytest.approx(case["loss"], abs=1e-4)


@pytest.mark.parametrize("position_rule", ["from_mask", "shifted"])
def test_latentqa_through_the_oracle(golden, golden_model, golden_oracle, position_rule):
    contract = golden.latentqa_contract(position_ids=position_rule)
    oracle = Oracle(golden_model, golden_oracle.adapter, contract)
    for case in golden.latentqa["cases"]:
        if case["shift_position_ids"] != (position_rule == "shifted"):
            continue
        rows = zip(
            golden.latentqa_texts(case), latentqa_reads(golden, golden_model, case), strict=True
        )
        for row, ((question, answer), acts) in enumerate(rows):
            expected = golden.latentqa_tensors[f"{case['id']}.{row}.logits"]
            start = -case["num_answer_tokens"][row] - 1
            found = oracle.next_token_logits(question, acts)
            torch.testing.assert_close(found, expected[start], atol=1e-4, rtol=0)
            ids = torch.tensor(case["decoder_input_ids"][row])[start + 1 : -1]
            steps = expected[start:-2].log_softmax(-1)
            score = oracle.score(question, acts, answer)
            assert score == pytest.approx(steps.gather(1, ids[:, None]).sum().item(), abs=1e-3)


def test_a_shift_reaches_the_position_ids_of_a_generation(golden, golden_model, golden_oracle):
    # Rotary positions hide a constant shift, so what the model was given is looked at.
    contract = golden.latentqa_contract(position_ids="shifted")
    oracle = Oracle(golden_model, golden_oracle.adapter, contract)
    chat = [{"role": "user", "content": "what is the secret word?"}]
    acts = golden_model.activations(chat, layers=4, positions=[6, 7])
    seen = []
    handle = golden_model.hf_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_ids"].clone()),
        with_kwargs=True,
    )
    try:
        oracle.ask("Why?", acts, max_new_tokens=3, controls=False)
    finally:
        handle.remove()
    assert seen[0][0, 0] == 5, "five tokens, but for the first, stand before the span"
    assert seen[1][0, -1] == seen[0][0, -1] + 1
