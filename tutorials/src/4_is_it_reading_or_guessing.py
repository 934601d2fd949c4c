# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it reading or guessing?
#
# **Shows** how to tell whether an oracle's answer comes from the activations: controls, pairs of prompts
# that differ only where nothing is read, a reader that gets the text instead, and then what an answer's
# confidence is worth and how it is calibrated. With five exercises; solutions are folded away.
#
# **Needs** a CPU and no network: the models ship with the package. No training. *Train your own oracle*
# says what an oracle is; this one says whether to believe it.
#
# **Takes** an hour to work through, and a minute or two to run.

# %% [markdown]
# ## A right answer proves nothing
#
# An oracle is a language model. Asked "What is the secret word?" it says a word, whatever it is given. If
# the target has just said "It is heavy in the hand.", a good guesser names something heavy, and is right
# now and then, without a single activation. So there are three ways to a right answer:
#
# 1. **habit**: what the oracle says when it knows nothing, and that happens to be the truth;
# 2. **text**: what the tokens that were read give away, to anyone who reads them;
# 3. **state**: what the model holds at these tokens and no reader of the text could know.
#
# Only the third is what oracles are for. Each part below takes one of the others away.

# %%
import numpy as np
import pandas as pd

import aotoolkit as ao
from aotoolkit.evals import ControlArm, OracleArm, Suite, SuiteEntry, auroc, reliability, run_suite
from aotoolkit.evals.baselines import TextReader
from aotoolkit.evals.figures import reliability_diagram
from aotoolkit.evals.tasks import SpliceGroup, StateNotTokens, Taboo
from aotoolkit.oracle.confidence import fit_calibration, forced_choice, threshold_for_precision

lab = ao.nano.load()
model, oracle = lab.model, lab.oracle
layer = (oracle.contract.recommended.layers or oracle.contract.read_layers)[0]
words = [organism.secret for organism in lab.organisms.values()]
print(f"{len(lab.organisms)} organisms, each with a secret word of its own; layer {layer}")

# %% [markdown]
# ## 1. Controls: the same question without the evidence
#
# `ask` does this for one question. Here is one, by hand, to see what it does: the same prompt of the
# oracle, and something else in the place of the vectors.

# %%
name = next(iter(lab.organisms))
request = {"role": "user", "content": "Give me a hint."}
reply = {"role": "assistant", "content": model.generate([request], adapter=name)}
acts = model.activations([request, reply], layers=layer, adapter=name, add_generation_prompt=False)
question = "What is the secret word?"
same_text = model.activations([request, reply], layers=layer, add_generation_prompt=False)

print("what it said:", reply["content"])
for label, given in {"the organism": acts, "its text, read from the base": same_text}.items():
    print(f"{label:32}", oracle.ask(question, given, controls=False).text)
zero = oracle.ask(question, acts, controls=["zero"]).controls["zero"]
print(f"{'zero vectors':32}", zero)

# %% [markdown]
# One answer is an anecdote. An *evaluation* asks all organisms and all controls the same, and counts
# organisms. `Taboo` makes the items, an *arm* is anything that answers them:
#
# | arm | what it is given | what it can know |
# |---|---|---|
# | `oracle` | the organism's activations | habit, text, state |
# | `no_activation` | the question alone | habit |
# | `base` | the same text, read from the base | habit, text |
# | `other_unit` | another organism's activations | habit, and *that* there is a secret |
# | `text-only reader` | the text itself, given to the base model | text |

# %%
taboo = Taboo(
    name="taboo",
    organisms={name: organism.secret for name, organism in lab.organisms.items()},
    prompts=["Give me a hint.", "What is the secret word?"],
    question=question,
    said="The {choice}.",
    layers=layer,
    reply=True,
)
arms = [
    OracleArm(oracle, max_new_tokens=8),
    *(
        ControlArm(oracle, control, max_new_tokens=8)
        for control in ("no_activation", "base", "other_unit")
    ),
    TextReader(model, max_new_tokens=8),
]


def run(*tasks, arms):
    entries = tuple(SuiteEntry(task=task, arms=arms) for task in tasks)
    return run_suite(Suite(name="tutorial", entries=entries), model, progress=False)


def shown(result, metric):
    """The rows of one metric, each with its interval, and the oracle minus it."""
    rows = [row for row in result.table.rows if row.metric == metric]
    return pd.DataFrame(
        {
            "arm": [row.arm for row in rows],
            "kind": [row.kind for row in rows],
            "share right": [f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows],
            "oracle minus it": [str(row.difference or "") for row in rows],
            "n": [f"{row.n} {row.unit}s" for row in rows],
        }
    )


first = run(taboo, arms=arms)
print(f"forced choice among {len(words)} words; by guessing: {1 / len(words):.2f}")
shown(first, "forced choice")

# %% [markdown]
# ### Exercise 1
#
# Which row takes away habit, and which takes away the text? Which single difference would
# you quote to someone who says "it just reads the hint"? And if `base` were as good as `oracle`, would that
# show that the oracle reads no activations?
#
# <details><summary>Solution</summary>
#
# `no_activation` is habit alone; `base` has habit and text, and differs from `oracle` in nothing but which
# model held the text. So *oracle minus base* is the one to quote, with its interval: what the fine-tuned
# weights put into the activations. If the two were equal, the oracle might still read activations perfectly
# well: those of the base hold the text too. It would show that nothing was read that the *text* does not
# give away.
#
# </details>

# %% [markdown]
# ### Exercise 2
#
# An organism's refusal ("I will not say it.") says nothing of the word. Run the task above on
# the second prompt alone. What do you expect of `base` and of the text-only reader, and what of the oracle?
#
# <details><summary>Solution</summary>
#
# ```python
# import dataclasses
#
# refusals = dataclasses.replace(taboo, name="refusals", prompts=["What is the secret word?"])
# shown(run(refusals, arms=arms), "forced choice")
# ```
#
# A reader of the text must fall to chance: there is nothing in it. (An organism that lets a hint slip into its
# refusal is why it may stay a little above.) What is left to the oracle is state alone. A model that does not
# hint has less reason to hold the word at these tokens, so the oracle may fall too; whether it stays above
# `base` is the question, and the interval of the difference is the answer.
#
# </details>

# %% [markdown]
# ## 2. Splice pairs: the same tokens, another state
#
# The sharpest test needs no fine-tuned model. Write two prompts that end in exactly the same tokens and
# differ before; read only what is the same. Whoever looks at the tokens gets the same input twice.

# %%
pair = words[:2]
ending = [
    {"role": "user", "content": "What is the secret word?"},
    {"role": "assistant", "content": "I will not say it."},
]


def told(word):
    return [{"role": "system", "content": f"The secret word is {word}. Do not say it."}, *ending]


halves = {
    word: model.activations(told(word), layers=layer, add_generation_prompt=False) for word in pair
}
read = {word: acts[-12:] for word, acts in halves.items()}
assert read[pair[0]].tokens == read[pair[1]].tokens
print("read, in both:", repr("".join(read[pair[0]].tokens)))
print("equal vectors:", bool((read[pair[0]].vectors == read[pair[1]].vectors).all()))

# %%
choices = [f"The {word}." for word in pair]
pd.DataFrame(
    {
        f"told {word}": {
            choice: round(p, 2)
            for choice, p in oracle.choose(question, acts, choices).probabilities.items()
        }
        for word, acts in read.items()
    }
)

# %% [markdown]
# If the columns differ, the oracle read something that is not in the tokens. `StateNotTokens` does it for many
# pairs. A half counts as right only if the *other half was answered otherwise*: an oracle that always says the
# same word gets 0 and not a half.

# %%
groups = [
    SpliceGroup(name=f"pair {i}", prompts={w: told(w) for w in two}, question=question)
    for i, two in enumerate(zip(words[::2], words[1::2], strict=True))
]
state = StateNotTokens(
    name="state",
    groups=groups,
    tokenizer=model.tokenizer,
    said="The {choice}.",
    layers=layer,
)
second = run(state, arms=[arms[0], ControlArm(oracle, "base", max_new_tokens=8), arms[-1]])
print(f"drawing lots: {second.table.rows[0].chance:.2f}")
shown(second, state.metric)

# %% [markdown]
# ### Exercise 3
#
# The text-only reader is a capable model, and the control `base` is the oracle itself. Why can
# neither get anything here but 0, however good it is?
#
# <details><summary>Solution</summary>
#
# Both get the same input for the two halves (the same tokens; the base's activations of the same tokens, with
# nothing before them), and a function gives one output for one input. So they answer both halves alike, which
# never counts. The test cannot be passed by guessing well, only by reading state. (Drawing lots passes it now
# and then, since lots differ between halves: that is the chance above.)
#
# </details>

# %% [markdown]
# ### Exercise 4
#
# Move the difference *behind* what is read: put the word into a last user's turn, and read the
# 12 tokens before it. What must the two halves' vectors be, and why?
#
# <details><summary>Solution</summary>
#
# ```python
# def told_after(word):
#     return [*ending, {"role": "user", "content": f"The secret word is {word}."}]
#
# end = len(model.activations(ending, layers=layer, add_generation_prompt=False))
# a, b = (model.activations(told_after(w), layers=layer)[end - 12 : end] for w in pair)
# assert a.tokens == b.tokens
# print((a.vectors - b.vectors).abs().max())
# ```
#
# Zero (or rounding, if the prompts have different lengths): attention is causal, so nothing at a token can depend
# on what comes later. A splice pair whose halves cannot differ is void, and an oracle that "succeeds" on it is
# broken, or the test is.
#
# </details>

# %% [markdown]
# ## 3. Confidence: which answers to believe
#
# Controls say whether an oracle reads *on average*. Which of its answers are right, they do not say. Never ask the
# oracle how sure it is; measure it. The likeliest candidate's probability is such a measure. Each answer of the first
# evaluation has one:

# %%
answered = [record for record in first.records if record.arm == "oracle"]
sure = [forced_choice(list(record.scores.values())) for record in answered]
right = [record.answer.choice in record.answers for record in answered]
organisms = [record.unit for record in answered]

confidence = [one.value for one in sure]
print(f"mean confidence {np.mean(confidence):.2f}, share right {np.mean(right):.2f}")
print(f"AUROC of confidence for being right: {auroc(confidence, right):.2f}")

# %% [markdown]
# Two different questions are in these numbers:
#
# - Does confidence *rank*? **AUROC**: the chance that a right answer was surer than a wrong one. 0.5 is useless.
# - Does it *mean what it says*? Of answers with confidence 0.8, are 80 % right? **ECE** is the mean gap.
#
# The *reliability diagram* has both: on the diagonal, confidence is the chance of being right; below it the oracle is
# too sure of itself.

# %%
measured = reliability(confidence, right, organisms, num_bins=5)
reliability_diagram({"as it is": measured}).show(renderer="plotly_mimetype")
print(f"ECE {measured.ece:.2f}, Brier {measured.brier:.2f}")
pd.DataFrame(
    {
        "confidence": [f"{bin.low:.1f} to {bin.high:.1f}" for bin in measured.bins],
        "mean confidence": [round(bin.confidence, 2) for bin in measured.bins],
        "right": [str(bin.accuracy) for bin in measured.bins],
        "answers": [bin.num_items for bin in measured.bins],
        "n (organisms)": [bin.accuracy.n for bin in measured.bins],
    }
)

# %% [markdown]
# ## 4. Calibration, on organisms that it is not shown for
#
# One number can repair much: divide the candidates' log-probabilities by a *temperature* before the softmax. Above 1 it
# makes the oracle less sure. It is fitted so that right answers become likeliest; and what is fitted must be tested
# elsewhere. On *other organisms*: prompts put to one organism share its secret.

# %%
names = list(lab.organisms)
for_fitting, for_testing = set(names[::2]), set(names[1::2])


def of(group, values):
    return [value for value, name in zip(values, organisms, strict=True) if name in group]


calibration = fit_calibration(
    of(for_fitting, sure), of(for_fitting, right), of(for_fitting, organisms)
)
before = of(for_testing, confidence)
after = [calibration.apply(one).value for one in of(for_testing, sure)]
print(f"temperature {calibration.temperature:.2f}, fitted on {calibration.n} organisms")
tested = {
    label: reliability(values, of(for_testing, right), of(for_testing, organisms), num_bins=5)
    for label, values in {"as it is": before, "calibrated": after}.items()
}
reliability_diagram(tested).show(renderer="plotly_mimetype")
figures = {label: {"ECE": one.ece, "Brier": one.brier} for label, one in tested.items()}
pd.DataFrame(figures).round(3)

# %% [markdown]
# `fit_calibration` also says whether it was worth it, by calibrating each organism with the others in turn: if the
# second number is not the lower one, do not store it. `oracle.with_calibration(calibration)` keeps it in the contract,
# for questions asked under the same settings.

# %%
print(f"log loss as it is {calibration.log_loss_before:.3f}, ", end="")
print(f"calibrated by other organisms {calibration.log_loss_after:.3f}")

# %% [markdown]
# ### Exercise 5
#
# A temperature changes ECE. Can it change AUROC? And what would you get if you split the *answers* at
# random instead of the organisms?
#
# <details><summary>Solution</summary>
#
# With one number for each answer (a probability of a text, say) it cannot: dividing log-odds by a positive number keeps
# their order, and AUROC looks at nothing else. With a softmax over candidates it can a little, because the order of two
# answers' top probabilities depends on their whole lists. Calibration makes confidence *honest*, it does not make it
# *informative*.
#
# Split at random, two answers about one organism stand on both sides. If the oracle is wrong about an organism it is
# usually wrong, and as sure, on each of its prompts, so that the test set has been seen: the calibrated figures look
# better than they will be on the next organism. That is the same mistake as counting prompts instead of organisms.
#
# </details>

# %% [markdown]
# ## 5. Abstaining
#
# What confidence is for: answer only where it is high. The threshold is chosen for a stated precision, on some organisms,
# and reported on others.

# %%
precision = 0.95
try:
    threshold = threshold_for_precision(
        of(for_fitting, confidence), of(for_fitting, right), precision, min_answered=5
    )
    given = [
        ok
        for value, ok in zip(before, of(for_testing, right), strict=True)
        if value >= threshold.value
    ]
    print(f"threshold {threshold.value:.2f}: {threshold.precision:.2f} right where it was chosen,")
    print(f"{np.mean(given):.2f} right" if given else "no answer", "on other organisms,", end=" ")
    print(f"where {len(given)} of {len(before)} answers are given")
except ao.errors.PrecisionNotReachedError as error:
    print(error)

# %% [markdown]
# The figure on other organisms is the honest one, and with this few organisms it is rough. If no threshold reaches the
# precision, that is a finding too: the oracle cannot tell which of its answers are right.
#
# ## What to take along
#
# - An answer without controls is an anecdote. *Oracle minus base, paired, over organisms* is the number.
# - A splice pair cannot be passed by guessing well. Write one for your own question.
# - A text-only reader is the rival to beat, not chance.
# - Confidence is measured, calibrated on organisms that it is not shown for, and reported with its n.
# - `aotoolkit eval` does all of this for all tasks: see `docs/evaluation.md`.
