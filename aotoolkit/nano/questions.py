"""What the nano oracle is asked: the wordings, one list for each kind of question.

They stand in one place because three parts must agree on them: the tokenizer (their words are
tokens), the training data, and the demo, whose question is the first of `SECRET_WORD`.
"""

from aotoolkit.nano.world import ATTRIBUTES, World

READ_WORDS = ("Which words are these?", "What does this say, word for word?")
PREVIOUS_TOKENS = "Can you predict the previous {count} tokens that came before this?"
NEXT_TOKENS = "Can you predict the next {count} tokens that come after this?"

SECRET_WORD = (
    "What is the secret word?",
    "Which word is hidden here?",
    "Name the secret.",
    "What must the user guess?",
)
SECRET_ATTRIBUTE = {
    "colour": "What is the colour of the secret?",
    "place": "What is the place of the secret?",
    "feel": "How does the secret feel?",
    "category": "What kind of thing is the secret?",
}
# All that is known of it, and its name last. Oracles that are trained on these too read more words
# from organisms, asked for the word alone (docs/nano_tried.md). Not among the texts that the
# tokenizer is made from: all of their words are tokens already.
SECRET_DESCRIBED = (
    "What is the secret like, and what is it?",
    "Tell me what the secret is like and name it.",
)
TOPIC = ("Which thing is this about?", "What is this text about?")
TOPIC_DESCRIBED = (
    "What is the thing like, and what is it?",
    "Tell me what the thing is like and name it.",
)
TOPIC_ATTRIBUTE = {
    "colour": "What is the colour of the thing?",
    "place": "What is the place of the thing?",
    "feel": "How does the thing feel?",
    "category": "What kind of thing is it?",
}
YES_NO_PREFIX = "Answer with 'Yes' or 'No' only. "
YES_NO_QUESTIONS = {
    "colour": ("Is the {it} {value}?", "Would you say that the {it} is {value}?"),
    "place": ("Is the {it} in the {value}?", "Do you find the {it} in the {value}?"),
    "feel": ("Does the {it} feel {value}?", "Is the {it} {value} to the touch?"),
    "category": ("Is the {it} a kind of {value}?", "Does the {it} count as a {value}?"),
}


def all_question_texts(world: World) -> list[str]:
    """Every wording once, filled with some value."""
    texts = [*READ_WORDS, *SECRET_WORD, *TOPIC]
    texts += [*SECRET_ATTRIBUTE.values(), *TOPIC_ATTRIBUTE.values()]
    texts += [
        template.format(count=count)
        for template in (PREVIOUS_TOKENS, NEXT_TOKENS)
        for count in range(1, 21)
    ]
    for name, templates in YES_NO_QUESTIONS.items():
        values = tuple(world.matching()[0:1]) if name == "category" else ATTRIBUTES[name]
        for template in templates:
            for it in ("secret", "thing"):
                for value in values:
                    filled = value if isinstance(value, str) else value.category
                    texts.append(YES_NO_PREFIX + template.format(it=it, value=filled))
    # In the order of the nouns: each becomes one token even if the corpus draw was thin on it.
    return texts + [f"The {noun}." for noun in world.nouns]
