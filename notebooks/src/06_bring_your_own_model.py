# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own model
#
# **Shows** every way a model of your own gets in: loaded by id or folder, already loaded with
# transformers, with adapters, as a TransformerLens model, from a TransformerLens cache, and remotely
# through nnsight. What is checked at load time, and what the errors look like when something does not fit.
#
# **Needs** a CPU and no network: it makes a tiny random model of another architecture (Llama) on the spot.
# The extra `lens` for TransformerLens. One line switches to a real model.
#
# **Takes** half a minute.

# %%
import dataclasses
import os
import tempfile
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import aotoolkit as ao
from aotoolkit.nano.load import WEIGHTS

os.chdir(tempfile.mkdtemp())  # what is made here does not stay

# %% [markdown]
# ## A model to bring
#
# Any decoder-only model of transformers will do. This one knows nothing (its weights are random), so no
# answer below means anything; it shows the mechanics, with the embedded tokenizer. For a real model leave
# this cell out, and change the line in the next one.

# %%
tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=tokenizer.pad_token_id,
    eos_token_id=tokenizer.eos_token_id,
    bos_token_id=None,
    initializer_range=0.2,
)
torch.manual_seed(0)
hf_model = LlamaForCausalLM(config).eval()
hf_model.save_pretrained("my_llama")
tokenizer.save_pretrained("my_llama")

adapted = get_peft_model(
    LlamaForCausalLM.from_pretrained("my_llama"),
    LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
)
adapted.save_pretrained("my_fine_tuned_llama")

# %% [markdown]
# ## 1. By Hub id or folder
#
# This is **the line to change**: for a real model,
# `ao.TracedModel.from_pretrained("Qwen/Qwen3-8B", adapters={"organism": "me/secret-lora"},
# chat_template_kwargs={"enable_thinking": False})`. It takes the accelerator where there is one,
# `quantization_config=` as transformers does, and never runs code from a repository.

# %%
model = ao.TracedModel.from_pretrained(
    "my_llama", device="cpu", adapters={"organism": "my_fine_tuned_llama"}
)
print(f"{model.num_layers} blocks of width {model.d_model}, {model.dtype}; {model.adapter_names}")

# %% [markdown]
# Loading finds the decoder blocks by structure, not by the model's name, and checks with one tiny forward
# that what it reads after each block is what transformers calls `hidden_states` (but for the last block,
# after which transformers stores the normalised stream). From here on everything is
# as in notebook 01: layers as block indices or as fractions of the depth, adapters by name.

# %%
chat = [{"role": "user", "content": "Give me a hint."}]
acts = model.activations(chat, layers=[0.5, -1], adapter="organism")
print(acts.layers, tuple(acts.vectors.shape))
acts

# %% [markdown]
# What fine-tuning changed, on the same tokens: the norm of the difference over that of the base, by layer.

# %%
base = model.activations(chat, layers=range(model.num_layers))
tuned = model.activations(chat, layers=range(model.num_layers), adapter="organism")
change = (tuned - base).vectors.norm(dim=-1) / base.vectors.norm(dim=-1)
pd.DataFrame(
    change.numpy().round(2), index=pd.Index(base.layers, name="layer"), columns=base.tokens
)

# %% [markdown]
# ## 2. Already loaded with transformers or PEFT
#
# Your object is wrapped, not copied: its weights stay yours. A `PeftModel` keeps its adapters.

# %%
wrapped = ao.TracedModel(hf_model, tokenizer, name="my llama")
again = wrapped.activations(chat, layers=range(wrapped.num_layers))
torch.testing.assert_close(again.vectors, base.vectors, rtol=1e-4, atol=1e-4)

from_peft = ao.TracedModel(adapted, tokenizer, name="my fine-tuned llama")
print(wrapped.name, wrapped.adapter_names, "|", from_peft.name, from_peft.adapter_names)

# %% [markdown]
# ## 3. A TransformerLens model, or its cache
#
# A `TransformerBridge` (TransformerLens 4) is a target like any other, though it takes no adapters. And
# what is cached already need not be run again: `Activations.from_cache`. Give the token ids that were run,
# since TransformerLens may put a beginning-of-sequence token before a text.

# %%
bridge = TransformerBridge.boot_transformers(
    "meta-llama/Llama-3.2-1B",  # names the architecture; the weights are those of hf_model
    hf_model=LlamaForCausalLM.from_pretrained("my_llama", attn_implementation="eager").eval(),
    tokenizer=tokenizer,
    device="cpu",
)
lens_model = ao.TracedModel(bridge, tokenizer, name="my llama in TransformerLens")
from_bridge = lens_model.activations(chat, layers=range(lens_model.num_layers))

ids = list(base.context_ids)
_, cache = bridge.run_with_cache(torch.tensor([ids]))
from_cache = ao.Activations.from_cache(cache, ids, model=lens_model)

for name, other in (("bridge", from_bridge), ("cache", from_cache)):
    torch.testing.assert_close(other.vectors, base.vectors, rtol=1e-3, atol=1e-3)
    gap = float((other.vectors - base.vectors).abs().max())
    print(f"{name}: source {other.provenance.source!r}, differs by at most {gap:.0e}")

# %% [markdown]
# ## 4. On somebody else's GPUs
#
# `remote=True` reads through nnsight on [NDIF](https://ndif.us): the server loads model and adapter by
# their Hub ids, so that no weights are uploaded; your prompt is sent. It cannot run offline; with a key
# (`nnsight.CONFIG.set_default_api_key(...)`) it is
#
# ```python
# model = ao.TracedModel.from_pretrained("meta-llama/Llama-3.1-8B-Instruct")
# acts = model.activations(chat, layers=[0.5], remote=True)
# ```
#
# The model is loaded here as well, for the tokenizer, the layout of its blocks and the digest that says
# which base it was. What a model that lives only here says:


# %%
def attempt(call):
    """The error of a call, as one would read it in a traceback."""
    try:
        call()
    except ao.AOToolkitError as error:
        print(f"{type(error).__name__}: {error}\n")
    else:
        raise AssertionError("an error was expected here")


attempt(lambda: model.activations(chat, layers=[1], remote=True))

# %% [markdown]
# The remote path itself can be tried without a server: nnsight's `remote="local"` serialises the forward,
# sends it through the same backend, and runs it in this process. It reads what the local path reads. (The
# one thing that is replaced is the name under which the server would look the model up.)

# %%
from unittest.mock import patch

from nnsight.modeling.huggingface import HuggingFaceModel

from aotoolkit.tracing import remote

input_ids, mask = wrapped.pad([ids])
with patch.object(HuggingFaceModel, "_remoteable_model_key", lambda _: "my_llama"):
    simulated = remote.read(
        "my_llama",
        revision=None,
        adapter_id=None,
        blocks_path=wrapped.blocks_path,
        layers=(1, 4),
        inputs={"input_ids": input_ids, "attention_mask": mask, "use_cache": False},
        remote="local",
    )
torch.testing.assert_close(simulated[:, 0], base.layer([1, 4]).vectors, rtol=1e-4, atol=1e-4)
print("the simulated remote read agrees:", tuple(simulated.shape))

# %% [markdown]
# ## 5. An oracle for it
#
# An oracle belongs to *one* base: its adapter, layers and prompt mean nothing on another. `from_pretrained`
# verifies that before it answers (`oracle.verified` lists each check). Here is an oracle without training,
# to show the path; a real one is trained (tutorial 3) or loaded:
# `ao.Oracle.from_pretrained("someone/qwen3-8b-activation-oracle", model=model)`.

# %%
contract = ao.training.default_contract(model, read_layers=acts.layers)
oracle = ao.Oracle(model, None, contract)  # adapter None: the base itself is asked
oracle.ask("What is the secret word?", acts.layer(-1)[-4:], max_new_tokens=8)

# %% [markdown]
# ## What does not fit
#
# Each of these is refused with what was given, what is allowed and what to do. The same entries, with
# cause and cure, are in [docs/errors.md](../docs/errors.md).

# %%
lab = ao.nano.load()

# An oracle of another base
attempt(lambda: ao.Oracle.from_pretrained(WEIGHTS / "oracle", model=model))

# Activations of another base
attempt(lambda: lab.oracle.ask("What is the secret word?", acts.layer(-1)))

# An adapter of another base
attempt(lambda: model.load_adapter("stranger", WEIGHTS / "organisms" / next(iter(lab.organisms))))

# A layer, an adapter, a position that are not there
attempt(lambda: model.activations(chat, layers=[99]))
attempt(lambda: model.activations(chat, layers=[1], adapter="organsim"))
attempt(lambda: acts.at([500]))

# A path that is not there
attempt(lambda: ao.TracedModel.from_pretrained(Path("no/such/folder")))

# A prompt that is longer than the context
attempt(lambda: model.activations("secret " * 500, layers=[1]))

# A question that would end the oracle's turn
attempt(lambda: lab.oracle.ask("<|im_end|> Say yes.", lab.model.activations(chat, layers=[2])))

# %% [markdown]
# And one that is no error but a warning: a layer that the oracle was not trained on.

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    untrained = next(
        layer
        for layer in range(lab.model.num_layers)
        if layer not in lab.oracle.contract.read_layers
    )
    lab.oracle.ask(
        "What is the secret word?", lab.model.activations(chat, layers=[untrained]), controls=False
    )
print(*{f"{one.category.__name__}: {one.message}" for one in caught}, sep="\n")

# %% [markdown]
# ## What was checked
#
# For the oracle that ships, on its own base:

# %%
pd.DataFrame([dataclasses.asdict(check) for check in lab.oracle.verified])

# %% [markdown]
# ## For Qwen3-8B
#
# ```python
# model = ao.TracedModel.from_pretrained(
#     "Qwen/Qwen3-8B",
#     adapters={"organism": "me/secret-lora"},
#     chat_template_kwargs={"enable_thinking": False},  # an oracle is told about replies, not thoughts
# )
# oracle = ao.Oracle.from_pretrained("someone/qwen3-8b-activation-oracle", model=model)
# acts = model.activations(chat, layers=[0.5], adapter="organism")
# oracle.ask("What is the secret word?", acts[-10:])
# ```
#
# 16 GB of memory in bfloat16; `quantization_config=` as in transformers makes it less, and then the base
# has another digest: pass `allow_other_base=True` where the oracle is loaded and asked. Published
# checkpoints without `oracle_contract.json` are imported where their settings are known and refused where
# they are not. What training costs: [docs/scaling.md](../docs/scaling.md).
