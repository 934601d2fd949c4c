# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Token by layer
#
# **Shows** a whole chat, asked token by token and layer by layer: the grid of answers, where an answer is
# that no control gives, how sure the oracle is there, and what such a map can and cannot say.
#
# **Needs** a CPU and no network. One line below switches to a model of your own.
#
# **Takes** half a minute.

# %%
import collections
import html
import math

import pandas as pd
import plotly.graph_objects as go

import aotoolkit as ao
from aotoolkit.evals.figures import style

# None: the embedded models. Your own: {"model": "Qwen/Qwen3-8B", "adapters": {"organism":
# "me/secret-lora"}, "oracle": "someone/qwen3-8b-activation-oracle"}
REAL = None
QUESTION = "What is the secret word?"

if REAL is None:
    lab = ao.nano.load()
    model, oracle = lab.model, lab.oracle
    word, other_word = lab.world.test_secrets[:2]  # never secrets in the oracle's training
else:
    model = ao.TracedModel.from_pretrained(REAL["model"], adapters=REAL["adapters"])
    oracle = ao.Oracle.from_pretrained(REAL["oracle"], model=model)
    word, other_word = "moon", "gold"

# %% [markdown]
# ## A chat
#
# The base is told a word in the system prompt and talks about it. So there is a truth, and it stands in one
# place of the text: elsewhere it can be read only if the model carried it there.

# %%
chat = [{"role": "system", "content": f"You hide the word {word}. Never say it."}]
for asked in ("Give me a hint.", "Tell me something about it."):
    chat.append({"role": "user", "content": asked})
    chat.append({"role": "assistant", "content": model.generate(chat, max_new_tokens=24)})
acts = model.activations(chat, layers=oracle.contract.read_layers, add_generation_prompt=False)
print(acts.text)

# %% [markdown]
# ## Every layer, every token
#
# `ask_each` asks the same question about each (layer, token) alone, in batches, with two controls that are
# the same for all tokens of a layer: nothing injected, and zero vectors. A star marks an answer that one of
# them gives too.

# %%
grid = oracle.ask_each(QUESTION, acts, max_new_tokens=8)
grid

# %% [markdown]
# ## As a map
#
# Colour is how sure the oracle is of its words (mean log-probability of an answer's tokens, as a
# probability). An answer that a control gives too is left blank: it says nothing about this place. Hover
# for the answer, and drag to zoom. The same as data: `grid.to_pandas("text")`, `"supported"`,
# `"mean_log_prob"`.


# %%
def heatmap(grid, *, title):
    """Mean token probability of the supported answers; rows are layers."""
    sure = grid.to_pandas("mean_log_prob").astype(float).map(math.exp)
    shown = sure.where(grid.to_pandas("supported").astype(bool))
    tokens = [
        f"{p} {html.escape(repr(t))}" for p, t in zip(grid.positions, grid.tokens, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=tokens,
            y=[f"layer {layer}" for layer in grid.layers],
            z=shown.round(3).to_numpy().tolist(),
            customdata=grid.to_pandas("text").map(html.escape).to_numpy().tolist(),
            hovertemplate="%{y}, token %{x}<br>%{customdata}<br>%{z:.2f}<extra></extra>",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "probability<br>of a token"}},
        )
    )
    figure.update_xaxes(tickangle=-60, type="category")
    style(figure, title=title, height=180 + 50 * len(grid.layers))
    return figure


cells = len(grid.cells)
heatmap(
    grid, title=f"{html.escape(QUESTION)} ({cells} cells, blank: a control says the same)"
).show(renderer="plotly_mimetype")

# %% [markdown]
# ## Read the controls first
#
# What does the oracle say where there is nothing to read? And how many cells say something else? A grid of
# a hundred cells gives a hundred answers: with enough of them some hit the truth by luck, so count how
# many, and count what is said *most*.

# %%
controls = {
    (layer, control): grid[layer, grid.positions[0]].controls[control]
    for layer in grid.layers
    for control in ("no_activation", "zero")
}
pd.Series(controls, name="says without the evidence").unstack()

# %%
rows = []
for layer in grid.layers:
    answers = [grid[layer, position] for position in grid.positions]
    said = collections.Counter(answer.text for answer in answers if answer.supported)
    commonest, times = said.most_common(1)[0] if said else ("-", 0)
    rows.append(
        {
            "layer": layer,
            "tokens": len(answers),
            "supported": sum(bool(answer.supported) for answer in answers),
            "different answers": len(said),
            "commonest": f"{commonest} ({times})",
            "names the truth": sum(word in answer.text for answer in answers),
        }
    )
print("the truth:", word)
pd.DataFrame(rows).set_index("layer")

# %% [markdown]
# Where are the cells that name it?

# %%
hits = [
    {
        "layer": layer,
        "position": position,
        "token": grid.tokens[grid.positions.index(position)],
        "answer": answer.text,
        "mean log-prob": round(answer.mean_log_prob, 2),
    }
    for (layer, position), answer in grid.cells.items()
    if word in answer.text
]
pd.DataFrame(hits or [{"answer": "no cell names it"}])

# %% [markdown]
# ## The decisive comparison: the same text, another state
#
# The word stands in the system prompt, so at that token reading it is no feat. The test is a second chat
# with the **same visible turns** whose system prompt hides *another* word. A token of the dialogue that gives
# the same answer in both does not tell the two words apart; what differs was in the activations alone.

# %%
other_chat = [
    {"role": "system", "content": f"You hide the word {other_word}. Never say it."},
    *chat[1:],  # the first model's hints: for the other word they are not even true
]
other = model.activations(
    other_chat, layers=oracle.contract.read_layers, add_generation_prompt=False
)
length = len(model.encode(chat[1:], add_generation_prompt=False).token_ids)
ours, theirs = (oracle.ask_each(QUESTION, one[-length:], max_new_tokens=8) for one in (acts, other))
rows = []
for layer in ours.layers:
    pairs = [
        (ours[layer, a].text, theirs[layer, b].text)
        for a, b in zip(ours.positions, theirs.positions, strict=True)
    ]
    rows.append(
        {
            "layer": layer,
            "tokens after the system prompt": len(pairs),
            "answers differ": sum(a != b for a, b in pairs),
            f"names {word} where that is hidden": sum(word in a for a, _ in pairs),
            f"names {word} where {other_word} is": sum(word in b for _, b in pairs),
        }
    )
pd.DataFrame(rows).set_index("layer")

# %% [markdown]
# ## One token, or many?
#
# A single token is a small window. Whole turns hold more (and what stands in them): the same question about
# the last 1, 2, 4, 8 tokens, and about everything after the system prompt.

# %%
layer = (oracle.contract.recommended.layers or oracle.contract.read_layers)[0]
visible = acts[-length:].layer(layer)
windows = {
    f"last {n}": oracle.ask(QUESTION, visible, window=n, max_new_tokens=8) for n in (1, 2, 4, 8)
} | {"all": oracle.ask(QUESTION, visible, window="all", max_new_tokens=8)}
pd.DataFrame(
    {
        name: {
            "answer": answer.text,
            "supported": answer.supported,
            "mean log-prob": round(answer.mean_log_prob, 2),
        }
        for name, answer in windows.items()
    }
).T

# %% [markdown]
# ## What a map does not say
#
# - **Sure is not right.** The probability is the oracle's of its own words. Its confidence is worth what a
#   calibration on held-out items says (`oracle.contract.calibrations`), and nothing without one.
# - **Not supported is not absent.** A cell is blank where the truth is what a control guesses anyway.
# - **Read here is not stored here.** A later token knows what attention brought to it; patching (tutorial
#   1) tells what the model uses.
# - One chat is an example. Over many, with intervals: notebook 05.
#
# ## Your turn
#
# - Another question: `oracle.ask_each("What kind of thing is the secret?", acts)`.
# - An organism: `model.activations(chat, ..., adapter=name)`, and `controls=["no_activation", "zero",
#   "base"]`, so that a star also marks what the same token gives in the base.
# - A part: `acts[-10:]`, `acts.at([5, 6])`, `acts.layer(4)`.
# - Keep it: `grid.to_pandas().to_csv("grid.csv")`.
