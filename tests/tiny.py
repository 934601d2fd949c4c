"""Tiny random models of many architectures, and a tokenizer to go with them.

For mechanics only (whether hooks fire, whether padding changes anything); where behaviour matters,
the tests use the trained models of `aotoolkit.nano`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 400
CONTEXT = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TEXT = (
    "Give me a hint. What is the secret word? The secret word is water, and it is blue. "
    "user assistant system Layer: 12 ? ? ? My name is Anna and I live in Paris. " * 3
)

# The least that each architecture's config needs beside the sizes that all share.
_OPTIONS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 8},
    "Qwen2": {},
    "Llama": {},
    "Mistral": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "GPT2": {},
    "GPTNeoX": {},
    "Phi3": {},
    "Olmo2": {},
    "Qwen3Moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
ARCHITECTURES = tuple(_OPTIONS)

_MODEL_CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


@functools.cache
def _trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        [_TEXT],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 3,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, with or without a chat template; no pad token, right padding."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()), eos_token="<|im_end|>"
    )
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def config(
    architecture: str = "Qwen3", *, num_layers: int = 4, width: int = 32, **options: Any
) -> transformers.PretrainedConfig:
    """A tiny config of one of `ARCHITECTURES`."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "GPT2":
        del sizes["intermediate_size"], sizes["num_key_value_heads"]
    if architecture == "GPTNeoX":
        del sizes["num_key_value_heads"]
    config_class = getattr(transformers, f"{architecture}Config")
    return config_class(**(sizes | _OPTIONS[architecture] | options))


def model(
    architecture: str = "Qwen3",
    *,
    num_layers: int = 4,
    width: int = 32,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """A tiny random causal LM in evaluation mode (float32, CPU)."""
    name = _MODEL_CLASSES.get(architecture, f"{architecture}ForCausalLM")
    model_class: Callable[..., PreTrainedModel] = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model_class(config(architecture, num_layers=num_layers, width=width, **options))
        # Weights as large as a trained model's, so that an error does not hide in small numbers.
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def save_adapter(
    folder: Path,
    architecture: str = "Qwen3",
    *,
    seed: int = 1,
    rank: int = 4,
    num_layers: int = 4,
    width: int = 32,
    **options: Any,
) -> Path:
    """Save a random LoRA on all linear layers that fits `model(...)`; -> its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        defaults = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, **(defaults | options))
        peft_model = get_peft_model(model(architecture, num_layers=num_layers, width=width), lora)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(str(folder))
    return folder
