"""A contract and examples for tiny random models, which the training tests share."""

import random

from aotoolkit.data import Example
from aotoolkit.oracle import OracleContract
from aotoolkit.oracle.prompt import describe_tokenizer


def contract(tokenizer) -> OracleContract:
    return describe_tokenizer(
        OracleContract(
            base_model="tiny",
            dialect="activation_oracle",
            prefix_template="Layer: {layer}\n{placeholders} \n",
            placeholder=" ?",
            read_layers=(1, 2),
            layers_per_prompt="several",
            inject_layer=0,
            formula="add_norm_matched",
            coefficient=1.0,
            transform="none",
            position_ids="from_mask",
        ),
        tokenizer,
    )


def draw(rng, **fields):
    """Two examples on one random context."""
    context = tuple(rng.randrange(3, 300) for _ in range(rng.randint(4, 12)))
    examples = []
    for _ in range(2):
        positions = tuple(sorted(rng.sample(range(len(context)), rng.randint(1, 3))))
        layers = rng.choice([(1,), (2,), (1, 2)])
        examples.append(
            Example(
                context_ids=context,
                positions=positions,
                layers=layers,
                question="What is it" + " now" * rng.randint(0, 4) + "?",
                answer="A hint.",
                source="test",
                **fields,
            )
        )
    return examples


def examples(count, seed=0, **fields):
    rng = random.Random(seed)
    return [example for _ in range(count // 2) for example in draw(rng, **fields)]
