"""The nano tokenizer: byte-level BPE with a ChatML template, trained on the world's own text.

Every noun is one token with its leading space: an oracle's placeholder carries one vector, and
"which word is this?" should have a one-token answer. `build_tokenizer` checks that, and that the
published oracle placeholder ` ?` is one token too.
"""

import copy
import random
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aotoolkit.nano.corpus import SHARES, Corpus, Document, Messages
from aotoolkit.nano.questions import all_question_texts
from aotoolkit.nano.world import World

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PLACEHOLDER = " ?"
VOCABULARY_SIZE = 2048

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def document_text(tokenizer: PreTrainedTokenizerFast, document: Document) -> str:
    """The text of a document as the models see it, with its end token."""
    if isinstance(document.content, str):
        return document.content + END
    return str(tokenizer.apply_chat_template(document.content, tokenize=False))


def build_tokenizer(
    world: World, *, seed: int = 0, documents: int = 30_000
) -> PreTrainedTokenizerFast:
    """Trains the tokenizer.

    Raises:
        RuntimeError: A noun or the placeholder did not become one token.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    corpus = Corpus(world, random.Random(seed))
    texts = [document_text(tokenizer, corpus.draw(SHARES)) for _ in range(documents)]
    # The oracle's prompts are no part of the base's reading, but their words should be words.
    texts += all_question_texts(world) * 20
    texts += [f"Layer: 2\n{PLACEHOLDER * 5} \nassistant user system"] * 500
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    split = [
        word
        for word in (*(f" {noun}" for noun in world.nouns), PLACEHOLDER)
        if len(tokenizer.encode(word, add_special_tokens=False)) != 1
    ]
    if split:
        raise RuntimeError(
            f"These words became several tokens: {split}. Raise VOCABULARY_SIZE "
            f"({VOCABULARY_SIZE}) or the number of documents ({documents})."
        )
    return tokenizer


@dataclass(frozen=True)
class Turn:
    """Where one message stands among the token ids of a rendered chat.

    Attributes:
        role: of the message.
        start: its first token, `<|im_start|>`.
        content: its first content token; the header is `start` to `content`.
        end: after the last content token.
    """

    role: str
    start: int
    content: int
    end: int


class Encoder:
    """Documents -> token ids, and where their turns stand.

    Turns are tokenised one at a time: the template's control tokens keep them apart, and most turns
    of the corpus occur thousands of times.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # The tokenizer's own call takes several times as long as encoding does. A copy, since that
        # call leaves its padding and truncation set.
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._turn = lru_cache(maxsize=200_000)(self._encode_turn)

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain text."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _encode_turn(self, role: str, content: str) -> tuple[tuple[int, ...], int, int]:
        header = self.text(f"<|im_start|>{role}\n")
        body = self.text(content)
        return header + body + self.text("<|im_end|>\n"), len(header), len(header) + len(body)

    def chat(self, messages: Messages) -> tuple[tuple[int, ...], list[Turn]]:
        """Token ids of a chat, the same as its rendered template gives, and its turns."""
        ids: tuple[int, ...] = ()
        turns: list[Turn] = []
        for message in messages:
            piece, content, end = self._turn(message["role"], message["content"])
            turns.append(Turn(message["role"], len(ids), len(ids) + content, len(ids) + end))
            ids += piece
        return ids, turns

    def document(self, document: Document) -> tuple[tuple[int, ...], list[Turn]]:
        """Token ids of a document; a plain text is one turn without a header."""
        if isinstance(document.content, str):
            body = self.text(document.content)
            return body + self.text(END), [Turn("text", 0, 0, len(body))]
        return self.chat(document.content)
