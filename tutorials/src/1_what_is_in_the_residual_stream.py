# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. What is in the residual stream
#
# **Shows** what an activation is, how to read one with a plain hook, with transformers, with this
# package and with TransformerLens (all four agree, and the notebook stops if they do not), and what the
# logit lens can and cannot see in it.
#
# **Needs** a CPU and no network, the extra `lens` (TransformerLens), and some PyTorch.
#
# **Takes** half a minute to run, and an hour with the four exercises. Try each before you open its
# solution.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import aotoolkit as ao
from aotoolkit.evals.baselines.lens import unembed
from aotoolkit.evals.figures import style
from aotoolkit.evals.statistics import bootstrap_mean
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.world import load_world

# The embedded model. Your own: NAME = "Qwen/Qwen3-0.6B", and facts that it knows instead of these.
NAME = "aotoolkit/nano"
CHECKPOINT = WEIGHTS / "base" if NAME == "aotoolkit/nano" else NAME

model = ao.TracedModel.from_pretrained(NAME, dtype=torch.float32, device="cpu")
if NAME == "aotoolkit/nano":
    facts = {
        f"The colour of the {thing.noun} is": f" {thing.colour}"
        for thing in load_world().things.values()
    }
else:
    facts = {"The capital of France is": " Paris", "The capital of Japan is": " Tokyo"}
model

# %% [markdown]
# ## A stream that every block adds to
#
# A decoder-only model turns each token into a vector and passes it through its *blocks*. A block does
# not replace the vector: it computes something from it (and, by attention, from the vectors of earlier
# tokens) and **adds** that to it. What is passed on is therefore called the *residual stream*:
#
# $$h_0 = \text{embedding}, \qquad h_{l+1} = h_l + \text{attention}_l(h_l) + \text{mlp}_l(\ldots),
# \qquad \text{logits} = W\,\text{norm}(h_L).$$
#
# Here, *the activation at layer l* is the stream **after** block l, with blocks counted from 0. In
# transformers that is `hidden_states[l + 1]`, since `hidden_states[0]` is the embedding; except after the
# last block, where transformers stores the stream once it has been normalised.

# %% [markdown]
# ## Read it, four ways
#
# A PyTorch *forward hook* is called whenever a module has run, and sees its output. That is all that is
# needed:

# %%
prompt = next(iter(facts))
ids = torch.tensor([model.encode(prompt).token_ids])
LAYER = model.num_layers // 2

seen = {}


def keep(_module, _inputs, output):
    seen["hook"] = output[0] if isinstance(output, tuple) else output


handle = model.blocks[LAYER].register_forward_hook(keep)
with torch.no_grad():
    output = model.hf_model(ids, output_hidden_states=True)
handle.remove()  # a hook that is forgotten goes on reading, or changing, every forward

print(prompt, "->", model.generate(prompt, max_new_tokens=3))
print("one vector a token:", tuple(seen["hook"].shape), "= batch, tokens, width")

# %% [markdown]
# transformers returns the same as `hidden_states[LAYER + 1]`, and `TracedModel.activations` the same
# again, with the tokens it belongs to and a record of where it came from.

# %%
acts = model.activations(prompt, layers=[LAYER])
assert torch.equal(seen["hook"], output.hidden_states[LAYER + 1])
torch.testing.assert_close(acts.vectors, seen["hook"], rtol=1e-4, atol=1e-4)
acts

# %% [markdown]
# [TransformerLens](https://transformerlensorg.github.io/TransformerLens/) names every place inside a
# model. Its `blocks.{l}.hook_resid_post` is our layer l.

# %%
hf_model = AutoModelForCausalLM.from_pretrained(
    CHECKPOINT, dtype=torch.float32, attn_implementation="eager"
).eval()
bridge = TransformerBridge.boot_transformers(
    "Qwen/Qwen3-0.6B" if NAME == "aotoolkit/nano" else NAME,  # for the embedded model: its kind
    hf_model=hf_model,
    tokenizer=model.tokenizer,
    device="cpu",
)
with torch.no_grad():
    _, cache = bridge.run_with_cache(ids)

every_layer = model.activations(prompt, layers=range(model.num_layers))
worst = 0.0
for place, layer in enumerate(every_layer.layers):
    theirs = cache[f"blocks.{layer}.hook_resid_post"][0]
    torch.testing.assert_close(every_layer.vectors[place], theirs, rtol=1e-3, atol=1e-3)
    worst = max(worst, float((every_layer.vectors[place] - theirs).abs().max()))
print(f"largest difference, {model.num_layers} layers, {len(every_layer)} tokens: {worst:.1e}")

# %% [markdown]
# (The difference that is left is rounding: the two compute attention in another order.)
#
# ### Exercise 1: a stream is a sum
#
# TransformerLens also keeps what attention and MLP of each block add: `blocks.{l}.hook_attn_out` and
# `blocks.{l}.hook_mlp_out`; the embedding is `hook_embed`. Show that the embedding and everything that
# the blocks up to `LAYER` add make `blocks.{LAYER}.hook_resid_post`.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# total = cache["hook_embed"].clone()
# for layer in range(LAYER + 1):
#     total += cache[f"blocks.{layer}.hook_attn_out"] + cache[f"blocks.{layer}.hook_mlp_out"]
# print(float((total - cache[f"blocks.{LAYER}.hook_resid_post"]).abs().max()))
# assert torch.allclose(total, cache[f"blocks.{LAYER}.hook_resid_post"], atol=1e-3)
# ```
#
# </details>

# %% [markdown]
# ## It holds more than the token
#
# The same token stands at the end of each of these prompts. Were its activation only about the token,
# the vectors would be equal. They are at the start (the embedding knows the token alone), and part as
# blocks add what attention brought from the tokens before.

# %%
two = list(facts)[:2]
first, second = (
    model.activations(text, layers=range(model.num_layers), positions=[-1]) for text in two
)
assert first.token_ids == second.token_ids
cosine = torch.nn.functional.cosine_similarity(first.vectors[:, 0], second.vectors[:, 0], dim=-1)
pd.DataFrame(
    {
        "cosine of the two": cosine.tolist(),
        "norm, first": first.vectors[:, 0].norm(dim=-1).tolist(),
        "norm, second": second.vectors[:, 0].norm(dim=-1).tolist(),
    },
    index=pd.Index(first.layers, name="layer"),
).round(3)

# %% [markdown]
# The norm changes from layer to layer as well. This is why an oracle adds a vector *at the norm of its
# own stream* (tutorial 2): a vector of layer 6 put into layer 1 at its own length would be a blow, or
# would not be noticed.
#
# ## The logit lens
#
# The model reads its answer off the last activation: `logits = W norm(h)`. The *logit lens*
# ([nostalgebraist, 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens))
# does the same to an activation of a layer in between, as if the rest of the model were not there.
# Below by hand, with the library's `unembed` (which runs the model's own last steps, so that nothing
# has to be found by name), and with TransformerLens. They agree.

# %%
place = every_layer.layers.index(LAYER)
vectors = every_layer.vectors[place]

with torch.no_grad():
    final_norm = model.hf_model.get_submodule("model.norm")  # as Llama and Qwen call them
    head = model.hf_model.get_submodule("lm_head")
    by_hand = head(final_norm(vectors))
    ours = unembed(model, vectors)
    theirs = bridge.unembed(bridge.ln_final(cache[f"blocks.{LAYER}.hook_resid_post"]))[0]

torch.testing.assert_close(by_hand, ours, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
print(f"library and TransformerLens differ by at most {float((ours - theirs).abs().max()):.1e}")

# %% [markdown]
# Through the lens, layer by layer: the likeliest token at each position, and its probability.


# %%
def lens_table(text, *, adapter=None):
    read = model.activations(text, layers=range(model.num_layers), adapter=adapter)
    columns = {}
    for position, token in enumerate(read.tokens):
        probabilities = unembed(model, read.vectors[:, position], adapter=adapter).softmax(-1)
        best = probabilities.max(-1)
        columns[f"{position} {token!r}"] = [
            f"{model.tokenizer.decode([index])!r} {value:.2f}"
            for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return pd.DataFrame(columns, index=pd.Index(read.layers, name="layer"))


lens_table(prompt)

# %% [markdown]
# Read it from the last column: it is what the model is about to say, layer by layer. The last row is
# what it does say.
#
# ## Where does a fact appear?
#
# One prompt is an anecdote. Here is the probability that the lens gives the right answer at the last
# token, over many facts, by layer, with a 95 % bootstrap interval over facts.

# %%
asked = list(facts)[:96]
answer_ids = [model.tokenizer.encode(facts[text], add_special_tokens=False)[0] for text in asked]
read = model.activations(asked, layers=range(model.num_layers), positions=[-1])
stacked = torch.stack([one.vectors[:, 0] for one in read])  # facts, layers, width

rows = []
for layer in range(model.num_layers):
    probabilities = unembed(model, stacked[:, layer]).softmax(-1)
    right = probabilities[torch.arange(len(asked)), answer_ids].tolist()
    found = bootstrap_mean([[p] for p in right], unit="fact", bounds=(0.0, 1.0))
    rows.append({"layer": layer, "mean": found.mean, "low": found.low, "high": found.high})
by_layer = pd.DataFrame(rows).set_index("layer")
by_layer["n facts"] = len(asked)
by_layer.round(3)

# %%
figure = go.Figure(
    go.Scatter(
        x=by_layer.index,
        y=by_layer["mean"],
        error_y={
            "array": by_layer["high"] - by_layer["mean"],
            "arrayminus": by_layer["mean"] - by_layer["low"],
        },
    )
)
figure.update_xaxes(title_text="layer")
figure.update_yaxes(title_text="probability", range=[-0.03, 1.03])
style(
    figure,
    title=f"Probability of the right answer through the logit lens (n = {len(asked)} facts)",
    height=380,
)
figure.show(renderer="plotly_mimetype")

# %% [markdown]
# A low curve in early layers does **not** say that the fact is not there. The lens speaks the last
# layer's language only; a fact can be held in another direction until a later block turns it into a
# token. That is the reason for oracles and probes: they learn to read what the lens cannot. And a high
# curve does not say that the model *uses* what stands there.
#
# ### Exercise 2: the token before
#
# In which layer does the *thing* arrive at the last token? At the last token (` is`) the embedding knows
# nothing of it. Compare, for each layer, the activations of two prompts with **different** things with
# those of two prompts that differ in wording only. Where do different things part?

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def last(text):
#     return model.activations(text, layers=range(model.num_layers), positions=[-1]).vectors[:, 0]
#
# pairs = list(zip(list(facts)[:40:2], list(facts)[1:40:2]))
# apart = torch.stack([
#     1 - torch.nn.functional.cosine_similarity(last(a), last(b), dim=-1) for a, b in pairs
# ])
# same = torch.stack([
#     1 - torch.nn.functional.cosine_similarity(last(a), last("Look. " + a), dim=-1) for a, _ in pairs
# ])
# print(pd.DataFrame({"other thing": apart.mean(0), "other wording": same.mean(0)}).round(3))
# ```
#
# Attention moves the thing to the last token in the first layer in which the left column clearly
# exceeds the right one. An average over twenty pairs: say so, and add an interval, before you believe a
# small difference.
#
# </details>

# %% [markdown]
# ### Exercise 3: does the model use it?
#
# Reading is not enough to show that something matters. Take the activation of the last token at
# `LAYER` from the prompt of one thing, **put it in the place** of that of another, and let the model go
# on. Whose answer does it give? (Write a hook that returns a changed output.) Try each layer.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer_with(vector, layer, text):
#     def put(_module, _inputs, output):
#         hidden = (output[0] if isinstance(output, tuple) else output).clone()
#         hidden[0, -1] = vector
#         return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
#
#     handle = model.blocks[layer].register_forward_hook(put)
#     try:
#         with torch.no_grad():
#             logits = model.hf_model(torch.tensor([model.encode(text).token_ids])).logits[0, -1]
#     finally:
#         handle.remove()
#     return model.tokenizer.decode([int(logits.argmax())])
#
# texts = list(facts)
# one = texts[0]
# other = next(text for text in texts if facts[text] != facts[one])
# print("of its own:", repr(facts[one]), " of the other:", repr(facts[other]))
# for layer in range(model.num_layers):
#     vector = model.activations(other, layers=[layer], positions=[-1]).vectors[0, 0]
#     print(layer, repr(answer_with(vector, layer, one)))
# ```
#
# Where the answer turns from the prompt's own into the other's, the last token has got the fact, or
# what it takes to say it; before that it still stands at earlier tokens. This is *activation patching*,
# and it is nearly what an oracle does.
#
# </details>

# %% [markdown]
# ### Exercise 4: what did fine-tuning change?
#
# `ao.nano.load()` gives the same base with *organisms*: adapters that hide a word each. Read the same
# text with an organism's adapter and with the base (`adapter=None`), subtract (`acts - other`), and look
# through the lens at the difference. Do you find what `lab.organisms[name].secret` says?

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# lab = ao.nano.load()
# name = next(iter(lab.organisms))
# chat = [{"role": "user", "content": "Give me a hint."}]
# options = {"layers": range(lab.model.num_layers)}
# change = lab.model.activations(chat, adapter=name, **options) - lab.model.activations(chat, **options)
# for layer in change.layers:
#     logits = unembed(lab.model, change.layer(layer).vectors[0].mean(0, keepdim=True))[0]
#     print(layer, [lab.model.tokenizer.decode([i]) for i in logits.topk(6).indices.tolist()])
# print("the secret:", lab.organisms[name].secret)
# ```
#
# One organism, six tokens a layer, and you know what to look for: the best conditions to fool oneself.
# Tutorial 6 does it without knowing the secret, tutorial 4 with controls.
#
# </details>

# %% [markdown]
# ## Go on
#
# Tutorial 2 puts such vectors into the stream of another copy of the model, and lets it say in words
# what they hold.
