"""How much of a word that only a system prompt tells stands in the turns after it, layer by layer.

An oracle can name what an organism hides where the base itself carries a hidden word along. Not
every base does. One carries it from its first block on, at tokens that do not need it; another,
with the same data, fetches it late and only where a reply is about to use it, and so do the
organisms made of it. Both know their world and keep their secrets (docs/nano.md, "Made again
otherwise").
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from aotoolkit.evals.baselines import EmbeddingMap
from aotoolkit.evals.items import EvalItem, ItemSpec, read_items
from aotoolkit.nano.corpus import Corpus
from aotoolkit.nano.tokenizer import Encoder
from aotoolkit.nano.world import World
from aotoolkit.tracing import TracedModel

DEPTHS = (0.25, 0.5, 0.75)
FITTED_PER_WORD, ASKED_PER_WORD = 6, 10
_BATCH = 64


def told_words(model: TracedModel, world: World) -> dict[int, float]:
    """Share of dialogues whose word a linear map names among all nouns, for each layer.

    The map (`EmbeddingMap`) goes from the mean of what is read to the word's embedding. It is
    fitted on dialogues about the words of the oracle's training, and asked about the validation
    words, which it was never told. Read are all turns after the system prompt; none of them holds
    the word.

    Args:
        model: the base.
        world: whose words.

    Returns:
        Block index -> share, at a quarter, half and three quarters of the depth.
    """
    rng = random.Random("told words/0")
    known, new = (
        read_items(
            model, _dialogues(model, world, words, count, rng), layers=DEPTHS, batch_size=_BATCH
        )
        for words, count in (
            (world.training_secrets, FITTED_PER_WORD),
            (world.validation_secrets, ASKED_PER_WORD),
        )
    )
    shares: dict[int, float] = {}
    for layer in new[0].layers:
        fitted = EmbeddingMap.fit(
            model, [_at(item, layer).activations for item in known], [item.unit for item in known]
        )
        answers = fitted.answer([_at(item, layer) for item in new])
        right = [answer.text == item.unit for answer, item in zip(answers, new, strict=True)]
        shares[layer] = sum(right) / len(right)
    return shares


def _at(item: EvalItem, layer: int) -> EvalItem:
    return replace(item, activations=item.activations.layer(layer))


def _dialogues(
    model: TracedModel, world: World, words: Sequence[str], count: int, rng: random.Random
) -> list[ItemSpec]:
    """`count` dialogues about each word, read after the system turn that tells it."""
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast), "built as one"
    encoder = Encoder(tokenizer)
    specs: list[ItemSpec] = []
    for word in words:
        corpus, token = Corpus(world, rng, secrets=(word,)), encoder.text(f" {word}")[0]
        told = 0
        while told < count:
            ids, turns = encoder.document(corpus.secret(guesses=False))
            start = turns[1].start
            if token in ids[start:]:
                continue
            specs.append(
                ItemSpec(
                    id=f"{word}/{told}",
                    task="told words",
                    unit=word,
                    question="",
                    answers=(word,),
                    prompt=list(ids),
                    choices=world.nouns,
                    positions=slice(start, None),
                )
            )
            told += 1
    return specs
