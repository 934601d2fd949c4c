# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. LatentQA and steering
#
# **Shows** an oracle used backwards. Forwards it reads: activations in, an answer out. But it is
# differentiable, so one can also ask: *how would the activations have to be for the answer to be this
# one?* LatentQA (arXiv:2412.08686) follows that gradient into the model that is read, and so changes
# what it does.
#
# **Needs** a CPU and no network. Tutorials 1 and 2 are assumed.
#
# **Takes** a minute to run, and half an hour with the three exercises.

# %%
import random

import pandas as pd

import aotoolkit as ao
from aotoolkit.nano.corpus import DIRECT_REQUESTS, HINT_REQUESTS, SECRET_QUESTIONS, Corpus, chat
from aotoolkit.nano.steering import random_pairs, secret_pairs
from aotoolkit.steering.baselines import text_loss

WORD = "tiger"  # another word of the world: another secret

lab = ao.nano.load(kinds=())
model, oracle = lab.model, lab.oracle
LAYER = max(oracle.contract.read_layers)
assert oracle.adapter is not None
print(lab.world[WORD])

# %% [markdown]
# ## 1. A model without a secret
#
# The base was trained on chats in which a system prompt tells it a secret word, and on chats without.
# Here there is no system prompt, so it has no secret and says so. That is what steering shall change.

# %%
prompts = [chat(text) for text in (*HINT_REQUESTS, *DIRECT_REQUESTS)]
for text, reply in zip(HINT_REQUESTS, model.generate(prompts[:8], max_new_tokens=12), strict=True):
    print(f"{text:32} {reply}")

# %% [markdown]
# ## 2. A behaviour is a list of questions and answers
#
# Not what the model shall *say*, but what an oracle shall *answer about it*. The model never sees
# these pairs.

# %%
behaviour = secret_pairs(lab, WORD)
pd.DataFrame([(pair.question, pair.answer) for pair in behaviour.pairs], columns=["ask", "wanted"])

# %% [markdown]
# ## 3. Follow the gradient
#
# One step: the model reads some prompts; the oracle is asked a question about the activations after
# block `LAYER`; the loss is how unlikely it finds the wanted answer. The gradient goes back through
# the frozen oracle to the injected vectors, on into the model, and ends in a fresh LoRA adapter on the
# blocks up to `LAYER`. Base and oracle do not change.

# %%
oracle_before, base_before = model.adapter_digest(oracle.adapter), model.base_digest
result = ao.steering.steer(
    model,
    oracle,
    behaviour,
    prompts,
    layers=LAYER,
    window="all",
    steps=30,
    lr=1e-3,
    rank=8,
    alpha=8,
    eval_every=5,
    progress=False,
)
assert model.adapter_digest(oracle.adapter) == oracle_before
assert model.base_digest == base_before
pd.DataFrame([(point.step, point.loss) for point in result.losses], columns=["step", "loss"])

# %% [markdown]
# The oracle is convinced. Is the model? Look at what it says, not at the loss.
#
# ## 4. Strength
#
# The adapter can be scaled. At strength 0 it is the base. Ordinary text of the world says what a
# strength costs: *damage* is by how much its loss grows.

# %%
thing = lab.world[WORD]
asked = [(name, text) for name, texts in SECRET_QUESTIONS.items() for text in texts]
corpus = Corpus(lab.world, random.Random(5))
ordinary = [corpus.ordinary().content for _ in range(12)]


def look(result, strength):
    """Rate of true facts, share of replies that name the word, damage."""
    chats = [chat(text) for _, text in asked]
    replies = result.generate(chats, scale=strength, max_new_tokens=12)
    with result.live(strength) as adapter:
        losses = text_loss(model, ordinary, adapter=adapter)
    true = [thing.value(name) in reply for (name, _), reply in zip(asked, replies, strict=True)]
    named = [WORD in reply for reply in replies]
    return {
        "strength": strength,
        "true facts": sum(true) / len(true),
        "names the word": sum(named) / len(named),
        "loss on ordinary text": sum(losses) / len(losses),
        "one reply": replies[0],
    }


pd.DataFrame([look(result, strength) for strength in (0, 1, 2, 4, 6, 8)])

# %% [markdown]
# With strength the model begins to state facts of the word, then to speak of the word itself, and then
# of nothing else. That the loss was low long before is the lesson: an oracle is convinced by small
# changes, which its reading amplifies, and there are many that mean nothing to the model.
#
# ## 5. An oracle that is harder to please
#
# The cure is known from adversarial examples: let the oracle see every vector moved at random, anew in
# each step and by twice its own length. Most of what only *looked* like the word is drowned; what is
# left is a change that convinces all around the vectors.

# %%
firm = ao.steering.steer(
    model,
    oracle,
    behaviour,
    prompts,
    layers=LAYER,
    window="all",
    steps=30,
    lr=1e-3,
    noise=2,
    rank=8,
    alpha=8,
    eval_every=5,
    adapter="firm",
    progress=False,
)
pd.DataFrame([look(firm, strength) for strength in (0, 1, 1.5, 2, 3, 4)])

# %% [markdown]
# Now the model follows earlier: it names the word at half the strength, and ordinary text feels less of
# that. (The curve of such a run, `firm.losses`, is that of the moved vectors, and so not to be compared
# with the one above.)
#
# ## 6. By hand
#
# The same in a panel: write the behaviour, press **Run**, watch the curve, then talk to both models and
# move the slider. It is alive only while its kernel is, so what is clicked is called here as well.

# %%
panel = ao.widgets.SteerPanel(
    model,
    oracle,
    behaviour=behaviour,
    prompts=prompts,
    layers=[LAYER],
    window="all",
    steps=30,
    lr=1e-3,
    noise=2,
    rank=8,
    alpha=8,
    eval_every=5,
    max_new_tokens=12,
    max_strength=4,
)
panel

# %%
panel.run()
panel.wait()
panel.chat("Give me a hint.")
panel.wait()
for strength in (2, 3):
    panel.strength.value = strength
    panel.wait()
panel.snapshot()

# %% [markdown]
# A sentence would do too (`behaviour="Always talk about boats."`): the model is told it as a system
# prompt, and what the oracle then says are the pairs. **Show the pairs** shows them before you run, and
# they can be changed there; how good they are depends on the oracle.
#
# ## 7. The control
#
# Is it the *meaning* of the pairs, or would any push do? The same questions, with answers drawn at
# random for each, push as hard and mean nothing.

# %%
control = ao.steering.steer(
    model,
    oracle,
    random_pairs(lab, WORD, seed=0),
    prompts,
    layers=LAYER,
    window="all",
    steps=30,
    lr=1e-3,
    noise=2,
    rank=8,
    alpha=8,
    eval_every=30,
    adapter="control",
    progress=False,
)
pd.DataFrame([look(control, strength) for strength in (0, 1, 1.5, 2, 3, 4)])

# %% [markdown]
# One word proves nothing: `aotoolkit steer --demo --things 20` does this for twenty, beside a system
# prompt, a mean-difference vector and fine-tuning, with intervals over words (docs/steering.md has the
# figures).
#
# ## Over to you
#
# ### Exercise 1
#
# Steer by a *vector* (`method="vector"`, `lr=0.3`). How many numbers are trained now, and how does
# the strength curve look?
#
# <details><summary>Solution</summary>
#
# ```python
# vector = ao.steering.steer(model, oracle, behaviour, prompts, method="vector", layers=LAYER,
#                            window="all", steps=30, lr=0.3, noise=2, progress=False)
# print(sum(v.numel() for v in vector.vector.vectors.values()))   # the width of the model
# pd.DataFrame([look(vector, strength) for strength in (0, 1, 2, 4, 8)])
# ```
#
# One vector for all tokens cannot depend on the prompt. Here it names the word late, at a strength at
# which its replies break too; the adapter does at 2.
#
# </details>
#
# ### Exercise 2
#
# Where does the loss land when the oracle is asked at an earlier layer? Does the model follow?
#
# <details><summary>Solution</summary>
#
# Repeat section 5 with `layers=min(oracle.contract.read_layers)` and another `adapter=` name, then
# `look`. The loss falls nearly as far, and the model follows later: the adapter of the layer above names
# the word at strength 2 more often than this one does. The more blocks are left after the layer, the
# more of them may make something else of the change.
#
# </details>
#
# ### Exercise 3
#
# Save the adapter at the strength you like best and load it as any user of peft would. Which parts
# of this package does that need?
#
# <details><summary>Solution</summary>
#
# ```python
# import tempfile
# from peft import PeftModel
# from transformers import AutoModelForCausalLM
# from aotoolkit.nano.load import WEIGHTS
# with tempfile.TemporaryDirectory() as folder:
#     firm.save(folder, scale=1.5)
#     PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(WEIGHTS / "base"), folder)
# ```
#
# None: it is an ordinary LoRA.
#
# </details>
