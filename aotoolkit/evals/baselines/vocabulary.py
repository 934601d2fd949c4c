"""From scores over the vocabulary to an answer: what the lenses share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aotoolkit.evals.baselines.replies import special_ids
from aotoolkit.evals.items import ArmAnswer, EvalItem
from aotoolkit.tracing import TracedModel


def unembeddings(model: TracedModel) -> Float[Tensor, "v d"]:
    """The rows of the head, or of the embedding where there is none; float32, on the CPU."""
    head = model.hf_model.get_output_embeddings()
    weight = (model.hf_model.get_input_embeddings() if head is None else head).weight
    assert isinstance(weight, Tensor)
    return weight.detach().float().cpu()


def first_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> set[int]:
    """The first token of a word: with and without a space before it, capital or not.

    A lens sees one token, so a word of several is known by its first.
    """
    spellings = {word, word[:1].upper() + word[1:], word[:1].lower() + word[1:]}
    found = set()
    for spelling in spellings:
        for text in (spelling, " " + spelling):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert isinstance(ids, list)
            # Some tokenizers write the space as a token of its own, which stands for no word.
            told = [i for i in ids if str(tokenizer.decode([i])).strip()]
            found.update(told[:1])
    return found


def choice_tokens(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]
) -> dict[str, list[int]]:
    """Choice -> the first tokens that tell it from the others; all of its own where none do."""
    tokens = {choice: first_tokens(tokenizer, choice) for choice in choices}
    result = {}
    for choice, own in tokens.items():
        others = set().union(*(ids for other, ids in tokens.items() if other != choice))
        result[choice] = sorted(own - others or own)
    return result


def answer_from_vocabulary(
    scores: Float[Tensor, " v"],
    item: EvalItem,
    *,
    arm: str,
    tokenizer: PreTrainedTokenizerBase,
    top_k: int,
) -> ArmAnswer:
    """The best choice, or where the answer is free the `top_k` best tokens.

    Free answers leave out special tokens and tokens that were read: a vector is like its own token
    in every model, and a text's own words are no finding.
    """
    if item.choices:
        tokens = choice_tokens(tokenizer, item.choices)
        by_choice = {choice: float(scores[ids].max()) for choice, ids in tokens.items()}
        best = max(by_choice, key=lambda choice: by_choice[choice])
        return ArmAnswer(item=item.id, arm=arm, text=best, scores=by_choice)
    allowed = scores.clone()
    left_out = {*item.activations.token_ids, *special_ids(tokenizer)}
    allowed[sorted(i for i in left_out if i < len(allowed))] = -torch.inf
    allowed[len(tokenizer) :] = -torch.inf  # rows of the embedding that no token has
    best_ids = allowed.topk(top_k).indices.tolist()
    words = [str(tokenizer.decode([i])).strip() for i in best_ids]
    return ArmAnswer(item=item.id, arm=arm, text=" ".join(words), details={"tokens": words})
