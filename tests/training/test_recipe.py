"""Recipes: what is wrong with one is said with file, line and key, before a model is loaded."""

import dataclasses
import itertools
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import recipe_files
import tiny
import torch
import yaml
from recipe_files import RECIPE

from aotoolkit.data import ContextPrediction, LayerChoice, TextSpec
from aotoolkit.errors import RecipeError
from aotoolkit.oracle.prompt import render_prompt
from aotoolkit.oracle.transform import MappedExample, fit_mapping, fit_mapping_by_token
from aotoolkit.tracing import TracedModel
from aotoolkit.training import config
from aotoolkit.training.config import TrainingConfig
from aotoolkit.training.recipe import RenderedLength, _shared_tokens, load_recipe
from aotoolkit.training.recipe_schema import QuantizationSettings
from aotoolkit.training.yaml_lines import read_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    recipe_files.write(folder)
    (folder / "one_class.csv").write_text("text,label\na,blue\nb,blue\nc,blue\n")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TracedModel, "from_pretrained", refuse)


# What is changed, into what; the line that is named (by what then stands there); what is said.
BAD = {
    "an unknown section": ("training:", "trainig:", "trainig:", "did you mean 'training'"),
    "an unknown key": ("num_examples:", "num_exmples:", "num_exmples", "did you mean 'num_exam"),
    "an unknown key of a source": ("num_tokens:", "tokens:", "tokens: [1", "Allowed are"),
    "a missing key": ('  placeholder: " ?"\n', "", "contract:", "'placeholder' is missing"),
    "a missing kind": ("        kind: classification\n", "", "source:", "'kind' is missing"),
    "an unknown kind": ("kind: classification", "kind: clasification", "kind: clasif", "'classif"),
    "no such text file": ("texts.txt", "text.txt", "text.txt", "there is no file"),
    "no such label file": ("labels.csv", "./label.csv", "label.csv", "there is no file"),
    "no such base": ("path_or_id: base", "path_or_id: ./bas", "bas", "there is no file or folder"),
    "a number in words": ("batch_size: 4", "batch_size: four", "batch_size", "valid integer"),
    "a number in quotes": ("seed: 1", 'seed: "1"', "seed:", "valid integer"),
    "half an example": ("num_examples: 80", "num_examples: 80.5", "num_examples", "valid integer"),
    "a value out of range": ("max_steps: 4", "max_steps: 0", "max_steps", "1 or more"),
    "an unknown formula": ("formula: add_norm_matched", "formula: add", "formula", "replace"),
    "a negative share": ("share: 3", "share: -3", "share: -3", "greater than or equal to 0"),
    "a list for a text": ("name: colours", "name: [colours]", "name: [col", "valid string"),
    "a yes for a name": ("name: colours", "name: yes", "name: yes", "quote it"),
    "a key twice": ("  seed: 1\n", "  seed: 1\n  seed: 2\n", "seed: 2", "twice"),
    "a key that is no text": ("  seed: 1\n", "  3: 1\n", "  3: 1", "quote it"),
    "not YAML": ("  seed: 1\n", "  seed: [1\n", "parts:", "not YAML"),
    # What needs the tokenizer, or the data.
    "a placeholder of two tokens": (
        'placeholder: " ?"',
        'placeholder: " ??"',
        "placeholder:",
        "must be one token",
    ),
    "a placeholder in a question": ("Is it {label}?", "Is it ? {label}?", "Is it ?", "stands in"),
    "a layer that is not there": ("[0.25, 0.5]", "[0.25, 9]", "read_layers", "out of range"),
    "labels of one class": ("labels.csv", "one_class.csv", "source:", "same labels"),
    "a batch that does not divide": (
        "batch_size: 4",
        "batch_size: 10\n  gradient_accumulation_steps: 4",
        "batch_size: 10",
        "multiple of 4",
    ),
    "an argument that transformers does not have": (
        "batch_size: 4",
        "batch_size: 4\n  extra_arguments:\n    optm: sgd",
        "optm: sgd",
        "did you mean 'optim'",
    ),
    "an argument that is the trainer's": (
        "batch_size: 4",
        "batch_size: 4\n  extra_arguments: {save_total_limit: 1}",
        "save_total_limit",
        "for the trainer to decide",
    ),
    "a dtype that is none": (
        "path_or_id: base",
        "path_or_id: base\n  dtype: float32x",
        "dtype",
        "it must be 'auto'",
    ),
    "an unknown key of the quantization": (
        "path_or_id: base",
        "path_or_id: base\n  quantization_config: {load_in_4bits: true}",
        "load_in_4bits",
        "did you mean 'load_in_4bit'",
    ),
    "a quantization to no bits": (
        "path_or_id: base",
        "path_or_id: base\n  quantization_config: {bnb_4bit_quant_type: nf4}",
        "quantization_config",
        "set one of",
    ),
    "curves to nowhere": ("report_to: []", "report_to: [wandbb]", "report_to", "wandb"),
    "a column that is not there": (
        "{source: labels.csv}",
        "{source: labels.csv, label: colour}",
        "source:",
        "'colour'",
    ),
    "shares of nothing": (("share: 3", "share: 1"), "share: 0", "parts:", "add up to 0"),
    "share and count": ("share: 3", "share: 3\n      count: 3", "share: 3", "give one"),
    "more counted than there is": ("share: 3", "count: 99", "parts:", "add up to 99"),
    "sources of one name": ("name: colours", "name: texts", "parts:", "Two sources are named"),
    "parts and no parts": ("  parts:", "  validation:", "data:", "either parts or stages"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_fails_with_its_line_before_a_model_is_loaded(case, folder, no_model):
    old, new, marked, said = BAD[case]
    recipe = RECIPE
    for text in [old] if isinstance(old, str) else old:
        assert text in recipe
        recipe = recipe.replace(text, new)
    path = folder / "bad.yaml"
    path.write_text(recipe)
    lines = [n for n, line in enumerate(recipe.splitlines(), start=1) if marked in line]
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(path).run(output_dir=folder / "run")
    message = str(caught.value)
    assert any(message.startswith(f"{path}:{line}:") for line in lines), (message, lines)


def test_all_wrong_keys_are_named_at_once(folder):
    path = folder / "bad.yaml"
    path.write_text(RECIPE.replace("batch_size", "batchsize").replace("held_out", "heldout"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_broken_part_is_not_reported_a_second_time_as_a_list_that_is_too_short(folder):
    path = folder / "bad.yaml"
    recipe = RECIPE.replace("texts.txt", "text.txt").replace("labels.csv", "label.csv")
    path.write_text(recipe)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 2
    assert "at least" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "just text\n", "a: !!python/name:os.system\n"])
def test_files_that_are_no_recipe(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError):
        load_recipe(path)
    with pytest.raises(RecipeError, match="is not there"):
        load_recipe(tmp_path / "none.yaml")


def test_what_is_merged_may_be_said_otherwise(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {seed: 1, steps: 5}\nb:\n  <<: *a\n  seed: 2\n")
    file = read_yaml(path)
    assert file.values["b"] == {"seed": 2, "steps": 5}
    assert file.at(("b", "seed")).startswith(f"{path}:4")
    path.write_text("a: &a {seed: 1}\nb: &b\n  <<: *a\n  seed: 2\nc: *b\n")
    assert read_yaml(path).values["c"] == {"seed": 2}
    path.write_text("a: &a {seed: 1}\nb:\n  <<: *a\n  seed: 2\n  seed: 3\n")
    with pytest.raises(RecipeError, match="'seed' stands here twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    "text", ["name: 2024-02-30\n", "a: &a {b: *a}\n", "a: " + "[" * 3000 + "]" * 3000 + "\n"]
)
def test_yaml_that_cannot_be_read_is_said(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        read_yaml(path)


def test_yaml_reads_as_yaml_12_does(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-5\nb: &b {c: [1, 2.0, true]}\nd: *b\ne: 5\n")
    file = read_yaml(path)
    assert file.values == {
        "a": 1e-5,
        "b": {"c": (1, 2.0, True)},
        "d": {"c": (1, 2.0, True)},
        "e": 5,
    }
    assert file.lines["e",] == (path, 4)
    assert file.at(("b", "c", 7)) == f"{path}:2: b.c.7"


def test_every_setting_of_a_run_can_stand_in_a_recipe(folder):
    """The section follows the class, so a new setting is one of recipes too."""
    settings = load_recipe(folder / "recipe.yaml").settings.training
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert set(type(settings).model_fields) == names - {"progress"}


def test_paths_are_relative_to_the_recipe(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.output_dir() == Path("runs/recipe")
    assert recipe.output_dir("elsewhere") == Path("elsewhere")
    path = folder / "other.yaml"
    path.write_text(RECIPE.replace("training:\n", "training:\n  output_dir: here/run\n"))
    assert load_recipe(path).output_dir() == folder / "here" / "run"
    _, contract, mixture = recipe.check()
    assert contract.read_layers == (1, 2)
    assert mixture is not None
    assert list(mixture.sources) == ["texts", "colours"]


def test_prompt_lengths_are_those_of_the_prompts(folder, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")
    built = recipe.build(tmp_path / "mixture", progress=False)
    tokenizer, contract, _ = recipe.check()
    assert len(built.train) + len(built.validation) == 80
    for example, tokens in zip(built.train, built.train.num_tokens, strict=True):
        prompt = render_prompt(
            tokenizer,
            contract,
            example.question,
            layers=example.layers,
            num_positions=len(example.positions),
            answer=example.answer,
        )
        assert tokens == len(prompt.token_ids)
    length = RenderedLength(tokenizer, contract)
    other = RenderedLength(
        tokenizer, dataclasses.replace(contract, prefix_template="{placeholders}")
    )
    assert length.digest != other.digest


def test_stages_validation_abstention_and_sources_of_ones_own(folder, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_source.py").write_text(
        "import dataclasses\n"
        "from aotoolkit.data import Example\n"
        "@dataclasses.dataclass\n"
        "class Own:\n"
        "    name: str\n    tokenizer: object\n    layers: object\n    size: int\n"
        "    def groups(self, seed):\n"
        "        for i in range(self.size):\n"
        "            yield [Example(context_ids=(5, 6, i + 7), positions=(1,), layers=(1,),\n"
        "                question='What?', answer='This.', source=self.name)]\n"
        "    def describe(self):\n        return {'kind': 'own', 'size': self.size}\n"
    )
    before, _, after = RECIPE.partition("data:\n")
    own = {"kind": "custom", "name": "own", "factory": "own_source:Own", "arguments": {"size": 9}}
    texts = yaml.safe_load(RECIPE)["data"]["parts"][0]["source"]
    section = {
        "stages": [
            {"parts": [{"source": own}]},
            {
                "parts": [
                    {"source": texts, "count": 20},
                    {
                        "source": {
                            "kind": "abstention",
                            "name": "abstention",
                            "share": 1.0,
                            "kinds": ["zero"],
                            "sources": [texts],
                        },
                        "count": 5,
                    },
                ]
            },
        ],
        "validation": [{"source": {**texts, "name": "judged"}, "count": 6}],
    }
    path = folder / "stages.yaml"
    path.write_text(
        before + yaml.safe_dump({"data": section}) + "training:" + after.partition("training:")[2]
    )
    built = load_recipe(path).build(tmp_path / "mixture", progress=False)
    assert {example.source for example in built.train[:9]} == {"own"}
    assert {example.source for example in built.train[9:]} == {"texts", "abstention"}
    assert {example.source for example in built.validation} == {"judged"}
    path.write_text(path.read_text().replace("size: 9", "sice: 9"))
    with pytest.raises(RecipeError, match=r"stages\.yaml:\d+: data\.stages\.0\.parts\.0\.source"):
        load_recipe(path).check()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_that_ship_are_right(path, tmp_path):
    """But for the data that they name, which are put in their places here, empty."""
    file = read_yaml(path)
    for own in {said for said, _ in file.lines.values()}:  # it may change another beside it
        shutil.copy(own, tmp_path)
    for line in file.path.read_text().splitlines():
        for word in line.replace("}", " ").replace(",", " ").split():
            if word.startswith("data/"):
                place = tmp_path / word
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.suffix:
                    place.touch()
                else:
                    place.mkdir(exist_ok=True)
    recipe = load_recipe(tmp_path / file.path.name)
    data = recipe.settings.data
    stages = data.stages or [data]
    names = [part.source.name for stage in stages for part in stage.parts]
    assert len(set(names)) == len(names)
    if (tmp_path / "data").exists():
        with pytest.raises(RecipeError, match="there is no file or folder"):
            load_recipe(path)


def test_a_recipe_runs_and_runs_on(folder, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")
    result = recipe.run(output_dir=tmp_path / "run", progress=False)
    assert (result.folder / "oracle_contract.json").is_file()
    manifest = result.oracle.contract.training_data
    assert [entry["name"] for entry in manifest] == ["texts", "colours"]
    again = recipe.run(output_dir=tmp_path / "run", progress=False)
    assert again.best_step == result.best_step


def test_a_transform_is_fitted_once(folder, tmp_path):
    path = folder / "centred.yaml"
    path.write_text(
        RECIPE.replace(
            "data:\n", "transform: {kind: centred_by_layer, num_contexts: 9}\n\ndata:\n", 1
        )
    )
    recipe = load_recipe(path)
    first = recipe.prepare(output_dir=tmp_path / "run", progress=False)
    (stored,) = (tmp_path / "run" / "transform").iterdir()
    written = (stored / "vector_transform.safetensors").stat().st_mtime_ns
    second = recipe.prepare(output_dir=tmp_path / "run", progress=False)
    assert (stored / "vector_transform.safetensors").stat().st_mtime_ns == written
    assert first.transform.digest == second.transform.digest == first.contract.transform_digest
    contexts = list(dict.fromkeys(example.context_ids for example in first.mixture.train))[:9]
    means = [
        first.model.activations(list(ids), layers=[1, 2]).vectors.double().sum(1)
        for ids in contexts
    ]
    expected = sum(means) / sum(map(len, contexts))
    assert (first.transform.mean - expected).abs().max() < 1e-4


def test_what_finds_an_answer_is_what_it_shares_with_another_and_all_of_it_where_that_is_nothing():
    tokens = {"red hat. hat.": [3, 9, 9], "red fox.": [3, 5], "sky": [8, 7, 7]}
    assert _shared_tokens(tokens) == {"red hat. hat.": [3], "red fox.": [3], "sky": [7, 8]}


@pytest.mark.parametrize("kind", ["mapped", "mapped_by_token", "mapped_pooled", "mapped_recalled"])
def test_a_map_is_fitted_to_the_answers_of_the_mixture(folder, tmp_path, kind):
    path = folder / "mapped.yaml"
    path.write_text(
        RECIPE.replace("data:\n", f"transform: {{kind: {kind}, num_contexts: 12}}\n\ndata:\n", 1)
    )
    prepared = load_recipe(path).prepare(output_dir=tmp_path / "run", progress=False)
    model = prepared.model
    embeddings = model.hf_model.get_input_embeddings().weight.detach()
    answers = {
        (example.context_ids, example.positions): example.answer
        for example in itertools.islice(prepared.mixture.train, 12)
    }
    tokens = {
        answer: model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        for answer in answers.values()
    }
    read = []
    for (ids, positions), answer in answers.items():
        vectors = model.activations(list(ids), layers=[1, 2]).vectors[:, list(positions)]
        elsewhere = {t for other, own in tokens.items() if other != answer for t in own}
        # What an answer has in common with another; all of it where that is nothing.
        key = set(tokens[answer]) & elsewhere or set(tokens[answer])
        read.append(
            MappedExample(
                vectors,
                [ids[i] for i in positions],
                embeddings[tokens[answer]].mean(0),
                embeddings[sorted(key)].mean(0),
            )
        )
    if kind == "mapped":
        expected = fit_mapping([(each.vectors, each.answer) for each in read], layers=(1, 2))
    else:
        expected = fit_mapping_by_token(
            kind, read, layers=(1, 2), vocabulary_size=len(prepared.model.tokenizer)
        )
    assert prepared.transform.kind == prepared.contract.transform == kind
    torch.testing.assert_close(prepared.transform.mapping, expected.mapping, rtol=1e-3, atol=1e-4)
    if kind == "mapped_recalled":
        torch.testing.assert_close(prepared.transform.answers, expected.answers)
        torch.testing.assert_close(prepared.transform.keys, expected.keys)
        torch.testing.assert_close(
            prepared.transform.key_mean, expected.key_mean, atol=1e-3, rtol=0
        )
    if kind != "mapped":
        torch.testing.assert_close(
            prepared.transform.token_mapping, expected.token_mapping, rtol=1e-3, atol=1e-4
        )


def test_a_transform_may_have_its_own_texts_and_more_layers(folder, tmp_path):
    (folder / "others.txt").write_text("blue water live name\nParis user word hint\n")
    section = {
        "kind": "centred_by_layer",
        "num_contexts": 2,
        "layers": [0, 1, 2, 3],
        "source": {
            "kind": "context_prediction",
            "name": "statistics",
            "texts": {"data": "others.txt"},
            "num_tokens": [1, 1],
            "num_positions": [[1, 1]],
        },
    }
    path = folder / "own_texts.yaml"
    path.write_text(RECIPE + yaml.safe_dump({"transform": section}))
    prepared = load_recipe(path).prepare(output_dir=tmp_path / "run", progress=False)
    assert prepared.transform.layers == (0, 1, 2, 3)
    source = ContextPrediction(
        name="statistics",
        texts=TextSpec(data=str(folder / "others.txt")),
        tokenizer=prepared.model.tokenizer,
        layers=LayerChoice((1, 2)),
        num_tokens=(1, 1),
        num_positions=((1, 1),),
    )
    contexts = [group[0].context_ids for group in source.groups(seed=1)]
    vectors = [
        prepared.model.activations(list(ids), layers=[0, 1, 2, 3]).vectors.double()
        for ids in contexts
    ]
    assert len(contexts) == 2
    assert (prepared.transform.mean - torch.cat(vectors, dim=1).mean(1)).abs().max() < 1e-4

    path.write_text(RECIPE + yaml.safe_dump({"transform": section | {"layers": [0, 1]}}))
    with pytest.raises(
        RecipeError, match=r"transform\.layers: the contract reads the layers \[2\]"
    ):
        load_recipe(path).check()


def test_a_recipe_for_another_base_and_what_a_contract_calls_it(folder, tmp_path):
    path = folder / "named.yaml"
    path.write_text(RECIPE.replace("path_or_id: base", "path_or_id: base\n  name: me/tiny"))
    elsewhere = shutil.copytree(folder / "base", tmp_path / "base")
    recipe = load_recipe(path).with_base(elsewhere)
    prepared = recipe.prepare(output_dir=tmp_path / "run", progress=False)
    assert prepared.model.name == str(elsewhere)
    assert prepared.contract.base_model == "me/tiny"


def test_a_file_that_only_includes_another_stands_for_it(folder):
    (folder / "inner").mkdir(exist_ok=True)
    path = folder / "inner" / "included.yaml"
    path.write_text("include: ../recipe.yaml\n")
    assert load_recipe(path).path.samefile(folder / "recipe.yaml")
    path.write_text("include: included.yaml\n")
    with pytest.raises(RecipeError, match="cannot include itself"):
        load_recipe(path)
    (folder / "inner" / "other.yaml").write_text("include: included.yaml\n")
    path.write_text("include: other.yaml\n")
    with pytest.raises(RecipeError, match=r"other\.yaml:1: include: a file cannot include itself"):
        load_recipe(path)
    path.write_text("include: none.yaml\n")
    with pytest.raises(RecipeError, match=r"none\.yaml is not there"):
        load_recipe(path)
    path.write_text("include: ../recipe.yaml\ntraining: {batch_size: 2}\n")
    with pytest.raises(RecipeError, match=r"included\.yaml:1: include: .* must lie beside it"):
        load_recipe(path)


def test_a_file_changes_what_it_includes_key_by_key(folder):
    whole = load_recipe(folder / "recipe.yaml")
    path = folder / "changed.yaml"
    path.write_text(
        "include: recipe.yaml\ncontract:\n  read_layers: [1]\ntraining:\n  learning_rate: 3e-4\n"
    )
    changed = load_recipe(path)
    assert changed.path.name == "changed.yaml"
    assert changed.output_dir() == Path("runs/changed")
    assert changed.settings.contract.read_layers == (1,)
    assert changed.settings.training.learning_rate == 3e-4
    for section in ("contract", "training"):
        left, right = (
            getattr(recipe.settings, section).model_dump(exclude={"read_layers", "learning_rate"})
            for recipe in (whole, changed)
        )
        assert left == right
    assert changed.settings.data == whole.settings.data


def test_what_is_wrong_is_said_of_the_file_that_says_it(folder):
    (folder / "inner.yaml").write_text(RECIPE)
    path = folder / "outer.yaml"
    path.write_text("include: inner.yaml\ncontract:\n  read_layers: [99]\n")
    with pytest.raises(RecipeError, match=r"^[^ ]*outer\.yaml:3: contract\.read_layers: "):
        load_recipe(path).check()
    assert "max_steps" in RECIPE
    (folder / "inner.yaml").write_text(RECIPE.replace("max_steps", "max_stepz"))
    with pytest.raises(RecipeError, match=r"^[^ ]*inner\.yaml:\d+: training\.max_stepz: unknown"):
        load_recipe(path)


def test_other_processes_wait_until_the_first_has_built(folder, tmp_path, monkeypatch):
    recipe = load_recipe(folder / "recipe.yaml")
    waited = []

    def first_process_builds(seconds):
        assert not (tmp_path / "mixture").exists()
        waited.append(seconds)
        with monkeypatch.context() as first:
            first.setenv("RANK", "0")
            first.setenv("LOCAL_RANK", "0")
            recipe.build(tmp_path / "mixture", progress=False)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("aotoolkit.training.recipe.time.sleep", first_process_builds)
    assert len(recipe.build(tmp_path / "mixture", progress=False).train) > 0
    assert len(waited) == 1


def test_rollouts_of_another_request_or_base_are_refused(folder, tmp_path, monkeypatch):
    request = "{path: written.jsonl, prompts: {data: texts.txt}, num_texts: 20,"
    request += " prefix_tokens: [3, 6], max_prompt_tokens: 9, max_new_tokens: 6}"
    recipe = RECIPE.replace("  parts:\n", f"  rollouts:\n    - {request}\n  parts:\n", 1)
    recipe = recipe.replace("{data: texts.txt}\n", "{data: written.jsonl}\n", 1)
    recipe = recipe.replace("share: 3\n", "share: 3\n      repeats: 20\n")
    path = folder / "rollouts.yaml"
    path.write_text(recipe)
    load_recipe(path).open(output_dir=tmp_path / "run", progress=False)
    line = recipe.splitlines().index(f"    - {request}") + 1

    path.write_text(recipe.replace("max_new_tokens: 6", "max_new_tokens: 7"))
    with monkeypatch.context() as without:
        without.setattr(TracedModel, "from_pretrained", None)
        with pytest.raises(RecipeError, match=rf":{line}: .*max_new_tokens was 6, now 7"):
            load_recipe(path).run(output_dir=tmp_path / "run", progress=False)

    path.write_text(recipe)
    other = shutil.copytree(folder / "base", tmp_path / "base")
    tiny.model(seed=1).save_pretrained(other)
    with pytest.raises(RecipeError, match=rf":{line}: .*base_digest was"):
        load_recipe(path).with_base(other).open(output_dir=tmp_path / "other", progress=False)


def test_a_service_without_a_login_is_noticed_before_a_model_is_loaded(
    folder, tmp_path, monkeypatch, no_model
):
    service = ModuleType("wandb")
    service.errors = SimpleNamespace(UsageError=RuntimeError)

    def login():
        raise service.errors.UsageError("No API key configured.")

    service.login = login
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(config, "get_available_reporting_integrations", lambda: ["wandb"])
    path = folder / "wandb.yaml"
    path.write_text(RECIPE.replace("report_to: []", "report_to: [wandb]"))
    with pytest.raises(RecipeError, match=r"wandb\.yaml:\d+: training\.report_to: .*WANDB_API_KEY"):
        load_recipe(path).run(output_dir=tmp_path / "run", progress=False)
    path.write_text(RECIPE.replace("report_to: []", "report_to: [mlflow]"))
    with pytest.raises(RecipeError, match="mlflow, whose packages are not installed"):
        load_recipe(path).run(output_dir=tmp_path / "run", progress=False)


def test_a_quantization_becomes_the_object_of_transformers():
    settings = QuantizationSettings(load_in_4bit=True, llm_int8_skip_modules=("lm_head",))
    made = settings.config()
    assert (made.load_in_4bit, made.load_in_8bit) == (True, False)
    assert made.llm_int8_skip_modules == ["lm_head"]
