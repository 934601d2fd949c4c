"""A small recipe with a tiny random base, and the files that it names."""

import csv
import random
from pathlib import Path

import tiny

RECIPE = """\
model:
  path_or_id: base

contract:
  dialect: activation_oracle
  prefix_template: "Layer: {layer}\\n{placeholders} \\n"
  placeholder: " ?"
  read_layers: [0.25, 0.5]
  layers_per_prompt: one
  inject_layer: 0
  formula: add_norm_matched
  coefficient: 1.0
  position_ids: from_mask

data:
  num_examples: 80
  held_out: 10
  seed: 1
  parts:
    - share: 3
      source:
        kind: context_prediction
        name: texts
        texts: {data: texts.txt}
        num_tokens: [1, 4]
        num_positions: [[1, 3]]
    - share: 1
      repeats: 20
      source:
        kind: classification
        name: colours
        data: {source: labels.csv}
        questions:
          - "Is it {label}?"
        window: {width: [1, 2], offset: [1, 2]}

training:
  max_steps: 4
  batch_size: 4
  learning_rate: 1e-3
  lora_rank: 2
  lora_alpha: 4
  eval_steps: 4
  save_steps: 4
  report_to: []
"""


def write(folder: Path, recipe: str = RECIPE) -> Path:
    """Writes recipe, base and data into a folder; -> the recipe's path."""
    base = folder / "base"
    if not base.exists():
        tiny.model().save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
    rng = random.Random(0)
    words = ["water", "hint", "secret", "word", "blue", "Anna", "Paris", "live", "name", "user"]
    lines = [" ".join(rng.choices(words, k=20)) for _ in range(60)]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(40):
            label = ("blue", "red")[index % 2]
            writer.writerow([f"The {rng.choice(words)} number {index} is {label}.", label])
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path
