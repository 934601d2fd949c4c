# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Train your own oracle
#
# **Shows** the way from a base model to an oracle that answers questions about its activations: what
# goes into the training, how to see whether the oracle *reads* or only guesses, and what it cannot do.
#
# **Needs** a laptop's CPU and no network: it trains on the small base model that ships with the
# package. One line below switches to a model of your own.
#
# **Takes** ten minutes at most, nearly all of it the training of 500 steps, with a progress bar: the
# whole took three to nine minutes on one core of a machine that was busy otherwise. The three exercises
# take an hour.

# %% [markdown]
# ## What an oracle is
#
# A language model turns every token of a text into a vector at every layer. Such an *activation* holds
# more than the token: what the model knows about it, what the text is about, what comes next. An
# *activation oracle* is a second copy of the same model, with a small adapter (LoRA), that is trained
# to answer questions about such vectors. Its prompt has placeholder tokens, and at these the vectors
# are written into its own residual stream:
#
# ```
# Layer: 4
#  ? ?                                  <- two vectors go in here
# What is the colour of the thing?      <- the question
# It is white.                          <- what it learns to say
# ```
#
# It never sees the text. Whatever it says rightly it has from the vectors, or from guessing well, and
# the controls tell the two apart.

# %%
import os
import random
import tempfile
from pathlib import Path

import pandas as pd
import rich

import aotoolkit as ao
from aotoolkit.data import LayerChoice, Mixture, OpenClassification, Part, Window
from aotoolkit.data.preview import draw_examples, preview, stats_table
from aotoolkit.data.table import LabelledTexts
from aotoolkit.nano.world import load_world
from aotoolkit.plots import training_curves
from aotoolkit.training import TrainingConfig, train_oracle

# None: the embedded model. Your own: {"model": "Qwen/Qwen3-0.6B", "layers": [0.25, 0.5, 0.75]}
REAL = None

if REAL is None:
    model, layers = ao.nano.load_model(), (4,)
else:
    model = ao.TracedModel.from_pretrained(REAL["model"])
    layers = tuple(map(model.resolve_layer, REAL["layers"]))
model

# %% [markdown]
# ## The base model
#
# The embedded model knows a small world: things with a kind, a colour, a place and a feel, dealt by lot,
# so that what it knows of them it has from its training and not from English.

# %%
for question in ("What is the colour of the swan?", "What kind of thing is the swan?"):
    print(question, "->", model.generate([{"role": "user", "content": question}]))

# %% [markdown]
# Below is what it represents while it reads the beginning of a sentence: a vector for each token. At the
# last one it is about to say the colour. The colour stands nowhere in the text; if it can be read at
# all, then from these numbers.

# %%
acts = model.activations("The colour of the swan is", layers=layers)
acts

# %% [markdown]
# ## The training data
#
# What an oracle learns to read is decided by its examples. Each has a text, the tokens that are read, a
# question and its answer. Here the texts are sentences that break off before a fact, and the question
# asks for the fact.
#
# A sixth of the things are put aside and never trained on. An oracle that has merely learned a list of
# facts by heart fails on them; one that reads does not.

# %%
things = list(load_world().things.values())
random.Random(0).shuffle(things)
new, known = things[:32], things[32:]

FACTS = {  # fact: question, answer, sentences that break off before it
    "colour": (
        "What is the colour of the thing?",
        "It is {}.",
        ["The colour of the {} is", "Every {} has the colour", "Look at the {}, it is"],
    ),
    "feel": (
        "How does the thing feel?",
        "It feels {}.",
        ["The {} feels", "Touch the {}, it is", "They say that the {} feels"],
    ),
    "category": (
        "What kind of thing is it?",
        "A kind of {}.",
        ["The {} is a kind of", "Every {} counts as a", "They call the {} a"],
    ),
}
if REAL is not None:
    FACTS = {"category": FACTS["category"]}  # the others no other model can know


def source(name, things, fact):
    """For a file of your own: `data=read_labelled_texts("mine.csv")`, columns text and label."""
    question, answer, sentences = FACTS[fact]
    rows = {
        sentence.format(thing.noun): frozenset([answer.format(thing.value(fact))])
        for thing in things
        for sentence in sentences
    }
    return OpenClassification(
        name=name,
        data=LabelledTexts(rows, origin="the embedded world"),
        tokenizer=model.tokenizer,
        layers=LayerChoice(layers),
        questions=[question],
        window=Window(width=(1, 3), offset=(1, 1)),  # the last one to three tokens are read
        chat=False,
    )


trained = [source(fact, known, fact) for fact in FACTS]
held_out = [source(f"{fact}, new things", new, fact) for fact in FACTS]

# %% [markdown]
# Look at examples before you train on them: the tokens that are read stand between ⟦ and ⟧. The answer
# must not be in the text around them, or the oracle learns to copy; and it must be in what is read, or
# it learns to guess.

# %%
for one in trained:
    for example in draw_examples(one, 2):
        rich.print(preview(example, model.tokenizer))

# %% [markdown]
# ### Exercise 1: look for leaks
#
# Two hundred examples are too many to look at. Write the check: for how many of them does a word of the
# answer stand in the text before the tokens that are read, or among them? (`draw_examples(one, 200)` gives
# examples with `context_ids`, `positions`, `question` and `answer`.) Then build a source that leaks, and
# see that your check finds it.

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def leaks(one, count=200):
#     found = 0
#     for example in draw_examples(one, count):
#         text = model.tokenizer.decode(list(example.context_ids))
#         word = example.answer.rstrip(".").split()[-1]  # "It is white." -> "white"
#         found += word in text.lower().split()
#     return found
#
# print({one.name: leaks(one) for one in trained})
#
# rows = {
#     f"The {thing.category} called {thing.noun} is a kind of": frozenset([f"A kind of {thing.category}."])
#     for thing in known
# }
# leaky = OpenClassification(
#     name="leaky",
#     data=LabelledTexts(rows, origin="an exercise"),
#     tokenizer=model.tokenizer,
#     layers=LayerChoice(layers),
#     questions=["What kind of thing is it?"],
#     window=Window(width=(1, 3), offset=(1, 1)),
#     chat=False,
# )
# print({"leaky": leaks(leaky)})
# ```
#
# An oracle that is trained on the leaky source scores well on its held-out things too. Only the words
# show it: nothing in the training curves does.
#
# </details>

# %% [markdown]
# A `Mixture` draws from the sources by shares and writes the whole to disk, so that a run that was
# stopped goes on with the same data. Repeats draw the tokens that are read anew.

# %%
STEPS = int(os.environ.get("AOTOOLKIT_TUTORIAL_STEPS", "500"))
BATCH_SIZE = 32
run = Path(tempfile.mkdtemp()) / "run"  # a folder of your own keeps it; a stopped run goes on there

mixture = Mixture(
    [Part(one, share=1, repeats=100) for one in trained],
    num_examples=STEPS * BATCH_SIZE,
    validation=[Part(one) for one in held_out],
).build(run / "mixture", tokenizer=model.tokenizer, progress=False)
rich.print(stats_table(mixture))

# %% [markdown]
# ## Train
#
# The base stays as it is; the adapter alone is trained. Activations are read from the base as training
# goes. By default the prompt and the injection are those of the Activation Oracles paper
# (arXiv:2512.15674).

# %%
config = TrainingConfig(
    output_dir=run,
    max_steps=STEPS,
    batch_size=BATCH_SIZE,
    learning_rate=1e-3 if REAL is None else 1e-4,
    lr_scheduler="cosine",
    warmup_steps=20,
    adam_beta2=0.98,
    lora_rank=64,
    lora_alpha=64,
    rslora=True,
    eval_steps=max(1, STEPS // 6),
    save_steps=max(1, STEPS // 3),
)
result = train_oracle(model, mixture, config)

# %% [markdown]
# ## Does it read, or does it guess?
#
# The loss falls in any case: an oracle that ignores the vectors still learns which answers are likely.
# So every held-out example is scored twice, with the vectors and without. The difference is what the
# activations contribute.

# %%
rows = pd.read_json(run / "validation.jsonl", lines=True)
pd.DataFrame(
    {
        (name.split(",")[0], part): [row[name][key] for row in rows["sources"]]
        for name in rows["sources"][0]
        for part, key in (("with", "exact_match"), ("without", "exact_match_without"))
    },
    index=pd.Index(rows["step"], name="step"),
).round(2)

# %% [markdown]
# The share of answers that are right word for word, about things that were never trained on. Without
# the vectors the oracle can only guess: one of six colours, one of six feels, one of sixteen kinds. The
# same as curves (in JupyterLab and VS Code; solid with the vectors, dashed without):

# %%
training_curves(run).show(renderer="plotly_mimetype")

# %% [markdown]
# ## Ask it
#
# About a thing that it was not trained on, picked so that the truth is not what the oracle guesses
# anyway. `ask` asks the same question with the evidence removed: an answer that a control gives too is
# marked as not supported.

# %%
oracle, fact = result.oracle, next(iter(FACTS))
question, answer, sentences = FACTS[fact]
thing = new[2]
text = sentences[0].format(thing.noun)
acts = model.activations(text, layers=layers[len(layers) // 2])
print(text, "... | the truth:", thing.value(fact))
oracle.ask(question, acts[-1:])

# %% [markdown]
# And about the first eight, not picked. Where the guess of a control happens to be the truth, a right
# answer is no evidence: `supported` is False.

# %%
rows = []
for other in new[:8]:
    read = model.activations(sentences[0].format(other.noun), layers=acts.layers)
    said = oracle.ask(question, read[-1:])
    rows.append(
        {
            "thing": other.noun,
            "truth": other.value(fact),
            "answer": said.text,
            "no activation": said.controls["no_activation"],
            "supported": said.supported,
        }
    )
pd.DataFrame(rows)

# %% [markdown]
# ### Exercise 2: put a number on it
#
# Eight things are an anecdote, and their verdicts cannot be averaged by eye. Ask about all held-out things,
# and give the share of right answers with the vectors, without them, and the difference, each with a 95 %
# interval over things (`aotoolkit.evals.statistics.bootstrap_mean`, one list of scores for each thing).

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from aotoolkit.evals.statistics import bootstrap_mean
#
# reads = [
#     model.activations(sentences[0].format(other.noun), layers=acts.layers, positions=[-1])
#     for other in new
# ]
# said = oracle.ask(question, reads, controls=["no_activation"])
# truths = [answer.format(other.value(fact)) for other in new]
# right = [float(one.text == truth) for one, truth in zip(said, truths)]
# guessed = [float(one.controls["no_activation"] == truth) for one, truth in zip(said, truths)]
# for label, scores, low in (
#     ("with", right, 0.0),
#     ("without", guessed, 0.0),
#     ("difference", [a - b for a, b in zip(right, guessed)], -1.0),
# ):
#     print(label, bootstrap_mean([[s] for s in scores], unit="thing", bounds=(low, 1.0)))
# ```
#
# The difference is paired: the same things with and without. Two intervals that overlap can still have a
# difference that excludes zero.
#
# </details>

# %% [markdown]
# Token by token: where can it be read? A star marks answers that a control gives too.

# %%
oracle.ask_each(question, acts)

# %% [markdown]
# ## What it can and cannot do
#
# The figures of the finished oracle, on things that it was never trained on; its contract keeps them:

# %%
figures = pd.DataFrame(oracle.contract.extra["validation"]["sources"]).T
figures[["n", "exact_match", "exact_match_without"]].astype({"n": int}).round(2)

# %% [markdown]
# That is all that is known about it: how often it is right about sentences of this form, for these
# questions, at this layer. Outside of that it does not say that it cannot answer. It confabulates. Here
# is the place of the thing, which the base is about to say, and which nobody taught the oracle to read:

# %%
text = f"You find the {thing.noun} in the"
print(text, "... | the truth:", thing.place)
oracle.ask("What is the place of the thing?", model.activations(text, layers=acts.layers)[-1:])

# %% [markdown]
# Where it gives the thing's own colour instead, it may have read, but not what was asked, and controls that
# name another colour do not say so.
#
# And here the vectors hold nothing that it was asked for: the sentence is about no thing at all. It names
# a colour all the same, and only the controls can give it away. Examples of *abstention*
# (`aotoolkit.data.Abstention`) teach an oracle to say that it cannot tell.

# %%
nothing = model.activations("Who saw the", layers=acts.layers)
oracle.ask("What is the colour of the thing?", nothing[-1:])

# %% [markdown]
# ### Exercise 3: another layer
#
# It was trained on one layer. Ask it about others, at the last token of the same sentences. What does the
# package say, and what happens to the share of right answers?

# %%
# Your code here.

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import warnings
#
# for layer in range(model.num_layers):
#     reads = [
#         model.activations(sentences[0].format(other.noun), layers=[layer], positions=[-1])
#         for other in new
#     ]
#     with warnings.catch_warnings(record=True) as caught:
#         warnings.simplefilter("always")
#         said = oracle.ask(question, reads, controls=False)
#     right = sum(
#         one.text == answer.format(other.value(fact)) for one, other in zip(said, new)
#     )
#     names = {warning.category.__name__ for warning in caught}
#     print(layer, f"{right} of {len(new)}", "UntrainedLayerWarning" in names)
# ```
#
# Neighbouring layers often work, since blocks only add to the stream; that is luck, not a promise, and the
# warning says so. `LayerChoice((2, 4, 6))` trains on several.
#
# </details>

# %% [markdown]
# ## Keep it, and go on
#
# The run's folder has the finished oracle: adapter, tokenizer, a model card, and the contract that says
# how it must be used, the training data included.

# %%
print(*sorted(path.name for path in result.folder.iterdir()), sep="\n")

# %%
fresh = ao.nano.load_model() if REAL is None else ao.TracedModel.from_pretrained(REAL["model"])
again = ao.Oracle.from_pretrained(result.folder, model=fresh)
again.ask(question, acts[-1:], controls=False).text

# %% [markdown]
# - **Your own texts**: `read_labelled_texts("mine.csv")`; `Classification` asks yes/no questions that
#   cannot be guessed; `ContextPrediction` needs nothing but texts.
# - **Your own model**: set `REAL` above.
# - **A recipe** holds all of this in one file: `aotoolkit data preview recipes/quickstart.yaml`, then
#   `aotoolkit train recipes/quickstart.yaml`; `recipes/nano.yaml` is the oracle that ships.
