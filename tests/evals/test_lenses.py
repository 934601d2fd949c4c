"""Logit lens, token similarity and mean-difference lens, against hand calculations."""

import pytest
import tiny
import tiny_items
import torch
from transformers import AutoTokenizer

from aotoolkit.errors import ArmNotApplicableError, EvalError
from aotoolkit.evals.baselines import LogitLens, MeanDifferenceLens, TokenSimilarity
from aotoolkit.evals.baselines.lens import lens_log_probs, unembed
from aotoolkit.evals.baselines.vocabulary import choice_tokens, first_tokens
from aotoolkit.tracing import TracedModel

PROMPT = "What is the secret word?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_last_layer_unembeds_to_the_models_own_logits(architecture):
    # Gemma 2 caps its logits: the model's own way out is taken whatever it is.
    model = TracedModel(tiny.model(architecture), tiny.tokenizer())
    acts = model.activations(PROMPT, layers=-1)
    with torch.no_grad():
        logits = model.hf_model(torch.tensor([acts.context_ids])).logits[0]
    torch.testing.assert_close(unembed(model, acts.vectors[0]), logits, rtol=1e-3, atol=1e-3)


def by_hand(model: TracedModel, vectors: torch.Tensor) -> torch.Tensor:
    """Norm and head of a Qwen3, written out."""
    base = model.hf_model
    scale = (vectors.pow(2).mean(-1, keepdim=True) + base.config.rms_norm_eps).rsqrt()
    head = base.lm_head.weight
    return (vectors * scale * base.model.norm.weight) @ head.T


def test_the_logit_lens_is_the_mean_probability_over_positions_and_layers(model):
    item, *others = tiny_items.items(model, 3, layers=[1, 2])
    answer, *_ = LogitLens(model).answer([item, *others])
    with torch.no_grad():
        base = model.peft_model.get_base_model()
        vectors = item.activations.vectors.flatten(0, 1)
        scale = (vectors.pow(2).mean(-1, keepdim=True) + base.config.rms_norm_eps).rsqrt()
        with model.using("red"):  # its head is adapted too
            logits = base.lm_head(vectors * scale * base.model.norm.weight)
    expected = logits.softmax(-1).mean(0).log()
    tokens = choice_tokens(model.tokenizer, item.choices)
    assert answer.scores == pytest.approx(
        {choice: float(expected[ids].max()) for choice, ids in tokens.items()}, abs=1e-4
    )
    assert answer.text == answer.choice


def test_a_free_answer_is_the_best_token_that_was_not_read(model):
    spec = {"choices": (), "answers": ("water",)}
    (item,) = tiny_items.items(model, 1, **spec)
    read = set(item.activations.token_ids)
    (scores,) = lens_log_probs(model, [item.activations.vectors[0]], adapter="red")
    ranked = [
        i
        for i in scores.argsort(descending=True).tolist()
        if i not in read and i > 2 and i < len(model.tokenizer)
    ]
    (answer,) = LogitLens(model, top_k=3).answer([item])
    assert answer.details["tokens"] == [model.tokenizer.decode([i]).strip() for i in ranked[:3]]
    assert not answer.scores


def test_token_similarity_is_the_mean_cosine_with_the_unembedding(model):
    (item,) = tiny_items.items(model, 1, layers=[1, 2])
    (answer,) = TokenSimilarity(model).answer([item])
    head = model.peft_model.get_base_model().lm_head.weight.detach()
    vectors = item.activations.vectors.flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(head[:, None], vectors[None], dim=-1).mean(1)
    tokens = choice_tokens(model.tokenizer, item.choices)
    assert answer.scores == pytest.approx(
        {choice: float(cosine[ids].max()) for choice, ids in tokens.items()}, abs=1e-5
    )


def test_the_mean_difference_is_over_all_positions_of_all_prompts(model):
    prompts = ["The secret", "Give me a hint. My name is Anna"]
    lens = MeanDifferenceLens(model, prompts, positions=slice(0, 4))
    items = tiny_items.items(model, 2)
    answers = lens.answer(items)
    for item, answer in zip(items, answers, strict=True):
        gaps = []
        for prompt in prompts:
            options = {"layers": 2, "positions": slice(0, 4)}
            ours = model.activations(prompt, adapter=item.adapter, **options).vectors[0]
            base = model.activations(prompt, **options).vectors[0]
            gaps += list(ours - base)
        mean = torch.stack(gaps).mean(0)
        torch.testing.assert_close(
            lens.difference(item.adapter, (2,))[0], mean, rtol=1e-3, atol=1e-4
        )
        with torch.no_grad(), model.using(None):
            expected = by_hand(model, mean[None])[0].log_softmax(-1)
        tokens = choice_tokens(model.tokenizer, item.choices)
        assert answer.scores == pytest.approx(
            {choice: float(expected[ids].max()) for choice, ids in tokens.items()}, abs=1e-2
        )
    assert answers[0].scores != answers[1].scores


def test_the_mean_difference_needs_prompts_and_an_adapter(model):
    with pytest.raises(EvalError, match="prompt"):
        MeanDifferenceLens(model, [])
    of_the_base = tiny_items.items(model, 1, adapter=None)
    with pytest.raises(ArmNotApplicableError, match="base itself"):
        MeanDifferenceLens(model, [PROMPT]).answer(of_the_base)


def test_choices_are_told_apart_by_tokens_that_only_one_begins_with(model):
    tokenizer = model.tokenizer
    assert first_tokens(tokenizer, "water") == first_tokens(tokenizer, "Water")
    tokens = choice_tokens(tokenizer, ("water", "wombat"))
    assert not set(tokens["water"]) & set(tokens["wombat"])
    same = choice_tokens(tokenizer, ("zzza", "zzzb"))
    assert same["zzza"] == same["zzzb"] != []


def test_agrees_with_transformerlens(tmp_path):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    hf_model = tiny.model()
    hf_model.config.architectures = [type(hf_model).__name__]
    tiny.tokenizer().save_pretrained(tmp_path)
    bridge = bridge_module.TransformerBridge.boot_transformers(
        "Qwen/Qwen3-0.6B",
        hf_model=hf_model,
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
        device="cpu",
    )
    model = TracedModel(tiny.model(), tiny.tokenizer())
    acts = model.activations(PROMPT, layers=[1, 2])
    _, cache = bridge.run_with_cache(torch.tensor([acts.context_ids]))
    for place, layer in enumerate(acts.layers):
        with torch.no_grad():
            residual = cache[f"blocks.{layer}.hook_resid_post"]
            theirs = bridge.unembed(bridge.ln_final(residual))[0]
        ours = unembed(model, acts.vectors[place])
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
