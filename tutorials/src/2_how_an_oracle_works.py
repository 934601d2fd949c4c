# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. How an oracle works
#
# **Shows** an activation oracle from scratch: a page of code with plain hooks, transformers and peft reads
# the activations of one model, injects them into another and lets it answer. Then the library's
# `oracle.ask`, which must give the same answer and the same logits (within 1e-4; the notebook stops if
# it does not), and each control by hand.
#
# **Needs** a CPU and no network. Tutorial 1 is assumed: residual stream, layers, hooks.
#
# **Takes** a minute to run, and an hour with the four exercises.

# %% [markdown]
# ## The idea
#
# An oracle is the *same* model as the one that is read (same base, so that its residual stream means the
# same), with a small adapter (LoRA) that was trained to answer questions about vectors. Its prompt is a
# chat with *placeholders*, one for each vector. After an early block, at each placeholder, a vector is
# added to its own residual stream. From there on it reads as it would read anything.
#
# ```
# target model                               oracle (same base, another adapter)
#
# user: Give me a hint.                      user: Layer: 2
# organism: ...                               ?  ?  ?  ?          <- placeholders
#    |  |  |  |                              What is the secret word?
#    v  v  v  v     after block `layer`      assistant: The ...
#   [vectors]  ------------------------------^ added after block `inject_layer`
# ```

# %%
import dataclasses
import json

import pandas as pd
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import aotoolkit as ao
from aotoolkit.evals.statistics import bootstrap_mean
from aotoolkit.nano.load import WEIGHTS

lab = ao.nano.load()  # the library's view of the same files, for comparison
QUESTION = "What is the secret word?"
HINT = [{"role": "user", "content": "Give me a hint."}]

# %% [markdown]
# ## The contract
#
# An oracle is right only when it is used as it was trained: same prompt, layer, block, formula. Its
# checkpoint says so, in `oracle_contract.json` beside the weights. These are the fields that the
# code below is about.

# %%
contract = json.loads((WEIGHTS / "oracle" / "oracle_contract.json").read_text())
needed = [
    *("dialect", "prefix_template", "placeholder", "read_layers", "inject_layer"),
    *("formula", "coefficient", "transform", "position_ids"),
]
pd.DataFrame({"value": [repr(contract[key]) for key in needed]}, index=needed)

# %% [markdown]
# A dialogue to read. Of the organisms, the first whose word the oracle names is taken, so that there is
# something to follow; how many there are is printed, since an example that was picked says nothing
# about how often it works.

# %%
LAYER = contract["extra"].get("recommended_layer", contract["read_layers"][0])
dialogues, reads = {}, {}
for organism in lab.organisms.values():
    reply = lab.model.generate(HINT, adapter=organism.name, max_new_tokens=24)
    dialogues[organism.name] = [*HINT, {"role": "assistant", "content": reply}]
    reads[organism.name] = lab.model.activations(
        dialogues[organism.name],
        layers=[LAYER],
        adapter=organism.name,
        add_generation_prompt=False,
    )[1:]  # without the first token, which is the same in every chat

answers = lab.oracle.ask(QUESTION, list(reads.values()), controls=False, max_new_tokens=12)
named = [
    organism.name
    for organism, answer in zip(lab.organisms.values(), answers, strict=True)
    if organism.secret in answer.text
]
name = [*named, *lab.organisms][0]
print(f"{len(named)} of {len(lab.organisms)} organisms are named; the one taken: {name}")
print("it says:", dialogues[name][1]["content"])

# %% [markdown]
# ## Thirty lines
#
# First the model, with two adapters on one base: the organism's and the oracle's.

# %%
tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float32).eval()
blocks = base.model.layers
peft_model = PeftModel.from_pretrained(
    base, str(WEIGHTS / "organisms" / name), adapter_name="organism"
)
peft_model.load_adapter(str(WEIGHTS / "oracle"), adapter_name="oracle")
peft_model.eval()
print(f"{' and '.join(peft_model.peft_config)} on one {type(base).__name__}")

# %% [markdown]
# **Read.** The organism's adapter on, a hook after block `LAYER`.

# %%
text = tokenizer.apply_chat_template(dialogues[name], tokenize=False)
target_ids = tokenizer(text, add_special_tokens=False)["input_ids"]


def read(ids, layer):
    seen = []
    handle = blocks[layer].register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        base(torch.tensor([ids]))
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0, 1:]


peft_model.set_adapter("organism")
vectors = read(target_ids, LAYER)
torch.testing.assert_close(vectors, reads[name].vectors[0], rtol=1e-4, atol=1e-4)
print(f"{len(vectors)} vectors of width {vectors.shape[1]}, the same that the library reads")

# %% [markdown]
# **Transform.** Some oracles get vectors from which a mean was taken away, because what a template token
# has in common with all its kind drowns what differs; some get them turned by a matrix, for instance
# into the space of the model's own embeddings. The one that ships does both: what a token has in common
# with its kind goes through one matrix, what this one has beyond it through another. And it *recalls*:
# what a text is about is spread over its tokens, a little in each, so the mean of all that are read is
# compared with the answers that the matrices were fitted to, and each vector is moved halfway to what
# that mean is most like. Each answer has a key, what it shares with others (the facts about a thing, not
# its name); a key counts by how much more like it the mean is than texts about other answers are. The
# contract says which; the statistics lie beside the weights.

# %%
file = WEIGHTS / "oracle" / "vector_transform.safetensors"
statistics, fitted = {}, []
if file.exists():
    statistics = load_file(file)
    with safe_open(file, framework="pt") as opened:
        fitted = [int(layer) for layer in opened.metadata()["layers"].split(",")]


def transform(vectors, ids, layer):
    kind = contract["transform"]
    if kind == "none":
        return vectors
    row = fitted.index(layer)
    mean = statistics["mean"][row].float()
    own = statistics["token_mean"][row, ids].float() if "token_mean" in statistics else mean
    matrix = statistics.get("mapping", statistics.get("whitening"))
    result = vectors - own
    if matrix is not None:
        result = result @ matrix[row]
    if "token_mapping" in statistics:
        result = result + (own - mean) @ statistics["token_mapping"][row]
    if kind == "mapped_recalled":
        told = torch.nn.functional.normalize(result.mean(0), dim=0)
        usual, spread = statistics["key_mean"][row], statistics["key_spread"][row]
        score = (statistics["keys"] @ told - usual) / spread.sqrt()
        if len(result) == 1:  # one vector by itself is compared with whole answers
            score = statistics["answers"] @ told
        recalled = torch.softmax(20 * score, dim=0) @ statistics["answers"]
        result = (result + result.norm(dim=1, keepdim=True) * recalled) / 2
    return result


given = transform(vectors, target_ids[1:], LAYER)

# %% [markdown]
# **Write the prompt, inject, generate.** Placeholders are found by where they stand in the text, never
# by searching for their token: a question may contain one too. The formula is
#
# $$h \leftarrow h + c\,\lVert h\rVert\,\frac{v}{\lVert v\rVert}$$
#
# (`add_norm_matched`, arXiv:2512.15674): the vector's direction, at the length of the stream that it is
# added to.

# %%
assert contract["dialect"] == "activation_oracle"
assert contract["formula"] == "add_norm_matched"


def ask_by_hand(question, vectors, layer=LAYER, coefficient=contract["coefficient"]):
    placeholders = contract["placeholder"] * len(vectors)
    prefix = contract["prefix_template"].replace("{layer}", str(layer))
    content = prefix.replace("{placeholders}", placeholders) + question
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt"
    )
    start = text.index(content) + prefix.index("{placeholders}")
    stop = start + len(placeholders)
    places = [
        i
        for i, (a, b) in enumerate(encoded["offset_mapping"][0].tolist())
        if start <= a < b <= stop
    ]
    assert len(places) == len(vectors)

    def inject(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] >= encoded["input_ids"].shape[1]:  # the prompt, not one new token
            hidden = hidden.clone()
            h, v = hidden[0, places], torch.nn.functional.normalize(vectors, dim=-1)
            hidden[0, places] = h + coefficient * h.norm(dim=-1, keepdim=True) * v
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = blocks[contract["inject_layer"]].register_forward_hook(inject)
    try:
        with torch.no_grad():
            logits = peft_model(encoded["input_ids"]).logits[0, -1]
            out = peft_model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=12,
                do_sample=False,
            )
    finally:
        handle.remove()
    new = out[0, encoded["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip(), logits


peft_model.set_adapter("oracle")
by_hand, logits = ask_by_hand(QUESTION, given)
print(f"{QUESTION} -> {by_hand}   (the truth: {lab.organisms[name].secret})")

# %% [markdown]
# ## The library's answer
#
# The same, with a lock around the model, the adapter that was live before put back, prompts in batches,
# lengths and layers checked, and the controls asked along. The notebook stops here if the two differ.

# %%
options = {"coefficient": contract["coefficient"]}
answer = lab.oracle.ask(QUESTION, reads[name], max_new_tokens=12, do_sample=False, **options)
theirs = lab.oracle.next_token_logits(QUESTION, reads[name], **options)

difference = float((logits - theirs).abs().max())
assert answer.text == by_hand, (answer.text, by_hand)
assert difference < 1e-4, difference
print(f"same answer; logits differ by at most {difference:.1e}")
answer

# %% [markdown]
# ## Controls by hand
#
# The oracle shares its base with the target. It has been trained on what answers are likely, so it says
# something plausible in any case. What it says **without the evidence** is therefore part of the answer.
# Four ways to take evidence away, and one to change its order, each one line:

# %%
torch.manual_seed(0)
random = torch.randn_like(given)  # the formula takes the direction only, so any length will do
rolled = given.roll(1, dims=0)

peft_model.set_adapter("organism")
with peft_model.disable_adapter():  # the base reads the text that the organism wrote
    from_base = transform(read(target_ids, LAYER), target_ids[1:], LAYER)

peft_model.set_adapter("oracle")
controls = {
    "no_activation": ask_by_hand(QUESTION, given[:0])[0],
    "zero": ask_by_hand(QUESTION, torch.zeros_like(given))[0],
    "random": ask_by_hand(QUESTION, random)[0],
    "shuffled": ask_by_hand(QUESTION, rolled)[0],
    "base": ask_by_hand(QUESTION, from_base)[0],
}
for control in ("no_activation", "zero", "base"):
    assert controls[control] == answer.controls[control], control
pd.DataFrame({"by hand": controls, "library": answer.controls}).loc[list(controls)]

# %% [markdown]
# `random` and `shuffled` are drawn, by the library anew for each read, so these two rows may differ; the
# others may not. What each of them tells:
#
# - `no_activation`: no placeholders at all. What the question suggests.
# - `zero`: placeholders to which nothing is added. What the *form* of the prompt suggests.
# - `random`: any disturbance at all. An oracle that answers to this reads noise.
# - `shuffled`: the same vectors, another order. The evidence is still there, so this control may well
#   agree; it tells whether order matters.
# - `base`: the same *text*, read from the base model. What the words give away, without the organism.
#
# ### Exercise 1: nothing added is nothing added
#
# Show with logits, not with words, that a coefficient of 0 and the control `zero` are the same thing,
# and that `no_activation` is another.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# peft_model.set_adapter("oracle")
# none = ask_by_hand(QUESTION, given[:0])[1]
# zero = ask_by_hand(QUESTION, torch.zeros_like(given))[1]
# off = ask_by_hand(QUESTION, given, coefficient=0.0)[1]
# print("zero and coefficient 0:", float((zero - off).abs().max()))
# print("zero and no activation:", float((zero - none).abs().max()))
# assert torch.allclose(zero, off, atol=1e-5)
# ```
#
# Normalising a vector of zeros gives zeros, so nothing is added. Without placeholders the prompt is
# shorter: other tokens, other logits.
#
# </details>

# %% [markdown]
# ## What breaks when the contract is broken
#
# Nothing raises when an oracle is used with another block, formula or layer than it was trained with:
# it goes on talking. Below, all organisms, one dialogue each, and a forced choice among their words
# (`oracle.choose`: the probability of each candidate as the whole reply), with one field of the contract
# changed at a time. The share that is right, with a 95 % interval over organisms; chance is one in the
# number of words.

# %%
words = {organism.name: f"The {organism.secret}." for organism in lab.organisms.values()}
oracle = lab.oracle


def changed(**fields):
    return ao.Oracle(
        oracle.model,
        oracle.adapter,
        dataclasses.replace(oracle.contract, **fields),
        transform=oracle.transform,
        tokenizer=oracle.tokenizer,
    )


other = next(layer for layer in reversed(oracle.contract.read_layers) if layer != LAYER)
variants = {
    "as trained": oracle,
    "injected after the last block but one": changed(inject_layer=oracle.model.num_layers - 2),
    "formula replace (LatentQA)": changed(formula="replace", coefficient=1.0),
    "coefficient 10": changed(coefficient=10.0),
    f"prompt says layer {other}": changed(
        prefix_template=oracle.contract.prefix_template.replace("{layer}", str(other))
    ),
    "adapter off (the base, untrained)": ao.Oracle(
        oracle.model, None, oracle.contract, transform=oracle.transform, tokenizer=oracle.tokenizer
    ),
}
rows = []
for label, variant in variants.items():
    # The coefficient is stated, so that one that the contract recommends does not replace it.
    chosen = variant.choose(
        QUESTION,
        list(reads.values()),
        list(words.values()),
        coefficient=variant.contract.coefficient,
    )
    right = [[float(c.text == words[n])] for c, n in zip(chosen, reads, strict=True)]
    share = bootstrap_mean(right, bounds=(0.0, 1.0))
    rows.append({"oracle": label, "right": str(share), "n organisms": share.n})
print(f"chance {1 / len(words):.2f}")
pd.DataFrame(rows).set_index("oracle")

# %% [markdown]
# What each change costs stands in the table (with this few organisms, intervals are wide: rows that
# overlap are not known to differ). No row says by itself that it is wrong: all of them answer. That is
# why a checkpoint carries its contract, and why loading verifies it (`oracle.verified`).

# %%
pd.DataFrame([dataclasses.asdict(check) for check in oracle.verified])

# %% [markdown]
# ### Exercise 2: the other paper's formula
#
# LatentQA (arXiv:2412.08686) *replaces* the stream at the placeholder by the vector. Write it by hand:
# a copy of `ask_by_hand` in which one line is another. Check it against
# `changed(formula="replace", coefficient=1.0).next_token_logits(...)`.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# Only this line of `inject` changes:
#
# ```python
# import inspect
#
# source = inspect.getsource(ask_by_hand)
# line = "hidden[0, places] = h + coefficient * h.norm(dim=-1, keepdim=True) * v"
# assert line in source
# replaced = source.replace(line, "hidden[0, places] = vectors").replace("ask_by_hand", "replacing")
# exec(replaced)
#
# peft_model.set_adapter("oracle")
# mine = replacing(QUESTION, given)[1]
# library = changed(formula="replace", coefficient=1.0).next_token_logits(QUESTION, reads[name])
# print(float((mine - library).abs().max()))
# assert torch.allclose(mine, library, atol=1e-3)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3: why not search for the token?
#
# A shorter way to find the placeholders would be `ids == contract["placeholder_id"]`. Find a question
# for which that goes wrong, and show where the vectors would have gone.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# prompt = ao.oracle.render_prompt(
#     lab.tokenizer, oracle.contract, "Is it ? or is it not ?", layers=[LAYER], num_positions=2
# )
# searched = [i for i, t in enumerate(prompt.token_ids) if t == contract["placeholder_id"]]
# print("by place: ", prompt.placeholder_positions)
# print("by token: ", searched)
# assert set(prompt.placeholder_positions) < set(searched)
# ```
#
# Two vectors and four places: code that searches either fails or writes into the question.
#
# </details>

# %% [markdown]
# ### Exercise 4: how few vectors will do?
#
# The oracle was given every token of the dialogue. Ask again about each token alone
# (`oracle.ask_each(QUESTION, reads[name])`), and about the last n together (`window=n`). From how many on
# does the answer stay?

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# grid = oracle.ask_each(QUESTION, reads[name], max_new_tokens=12)
# print(grid)
# for n in (1, 2, 4, 8, 16, len(reads[name])):
#     print(n, oracle.ask(QUESTION, reads[name], window=n, controls=False, max_new_tokens=12).text)
# ```
#
# For one organism this is an anecdote. `aotoolkit.evals.sweep.sweep` does it over held-out examples, with
# intervals: notebook 05.
#
# </details>

# %% [markdown]
# ## Go on
#
# Where the adapter comes from is tutorial 3 (train your own); whether what it says comes from the
# vectors, over many items, is tutorial 4 (is it reading or guessing).
