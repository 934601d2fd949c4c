"""Chat templates in the ways in which published ones differ, and where their turns begin."""

from collections.abc import Sequence

from aotoolkit.data.context import Message

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3: a token before everything, contents trimmed.
LLAMA = (
    "<|endoftext|>{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
# Gemma: the system prompt inside the user's turn; roles must take turns.
GEMMA = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Qwen3: an empty thought before the last reply only; thoughts of earlier ones are dropped.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2 and Mistral: no header of the reply, only what closes the user's turn.
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
# Vicuna: plain words.
VICUNA = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "vicuna": VICUNA,
}


def text_before(name: str, messages: Sequence[Message], turn: int) -> str:
    """What stands before a turn that more turns or nothing follow, written out by hand."""
    text = "<|endoftext|>" if name == "llama" else ""
    rest = list(messages[:turn])
    if name == "gemma" and rest and rest[0]["role"] == "system":
        first = rest.pop(0)["content"] + "\n\n"
        if not rest:
            return f"<|im_start|>user\n{first}"
    else:
        first = ""
    for index, message in enumerate(rest):
        role, content = message["role"], message["content"]
        if name in ("llama", "gemma"):
            content = content.strip()
        if name == "gemma" and index == 0:
            content = first + content
        if name == "qwen3" and role == "assistant":
            content = content.split("</think>")[-1].lstrip("\n")
        text += {
            "chatml": f"<|im_start|>{role}\n{content}<|im_end|>\n",
            "qwen3": f"<|im_start|>{role}\n{content}<|im_end|>\n",
            "llama": f"<|im_start|>{role}<|im_end|>\n\n{content}<|im_end|>",
            "gemma": f"<|im_start|>{'model' if role == 'assistant' else role}\n"
            f"{content}<|im_end|>\n",
            "mistral": f" {content}<|im_end|>"
            if role == "assistant"
            else f"[INST] {content} [/INST]",
            "vicuna": f"{role.upper()}: {content}\n",
        }[name]
    return text
