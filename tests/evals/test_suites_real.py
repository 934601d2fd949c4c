"""Suites of real models, on a tiny one with small files in the published form."""

import dataclasses
import json

import guessers
import pytest
import tiny_items

from aotoolkit.errors import ArmNotApplicableError, DataError, EvalError, EvalLeakError
from aotoolkit.evals import run_suite
from aotoolkit.evals.suites import (
    Organisms,
    aobench_suite,
    latentqa_suite,
    read_organisms,
    secret_keeping_suite,
)
from aotoolkit.evals.suites.aobench import _each_name_once
from aotoolkit.evals.suites.arms import BASELINES, standard_arms, told_probe
from aotoolkit.evals.tasks import Taboo
from aotoolkit.evals.tasks.splice import SpliceGroup
from aotoolkit.oracle import Oracle

PEOPLE = [
    {"name": f"Anna{n}", "favorite_sport": ("go", "chess")[n % 2], "country": f"c{n % 3}"}
    for n in range(6)
]
ATTRIBUTES = ("favorite_food", "favorite_drink", "favorite_music_genre", "favorite_boardgame")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def oracle(model):
    return tiny_items.oracle(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files, small."""
    root = tmp_path_factory.mktemp("data")
    prompts = {"test": "What is it?\nSay it.\n", "val": "A hint.\nA clue.\nMore.\n"}
    for kind in ("taboo", "gender", "ssc"):
        (root / kind).mkdir()
        for style in ("direct", "standard"):
            for split, text in prompts.items():
                (root / kind / f"{kind}_{style}_{split}.txt").write_text(text)
    (root / "ssc" / "ssc_test_constraints.txt").write_text("be kind\nbe rude\n")
    for variant in ("shuffled", "base"):
        (root / "personaqa" / variant).mkdir(parents=True)
        people = PEOPLE if variant == "shuffled" else PEOPLE[::-1]
        filled = [
            person | {name: f"v{n % 2}" for name in ATTRIBUTES} for n, person in enumerate(people)
        ]
        (root / "personaqa" / variant / "personas.jsonl").write_text(
            "\n".join(map(json.dumps, filled))
        )
    (root / "classification").mkdir()
    rows = [f"It is {n}.,{n % 2}" for n in range(12)]
    (root / "classification" / "cities.csv").write_text("\n".join(["statement,label", *rows]))
    questions = {"geometry_of_truth": ["Is it true?", "Is it so?"]}
    (root / "classification" / "paraphrases.json").write_text(json.dumps(questions))
    (root / "latentqa").mkdir()
    labels = [f"persona-{n}" for n in range(8)] + [f"sqa-{n}" for n in range(2)]
    files = {
        "qa": {label: [["Who?", f"It is {label}."], ["How?", "So."]] for label in labels},
        "system": [{"label": x, "system": f"Be {x}", "stimulus_user": f"Hi {x}"} for x in labels],
        "control": [{"label": x, "control_user": f"Be {x}"} for x in labels],
    }
    for name, content in files.items():
        (root / "latentqa" / f"{name}.json").write_text(json.dumps(content))
    (root / "r.tsv").write_text(
        "subject\tobject\tprompt_source\nAnna\tParis\t by Anna\nBen\tRome\t\n"
    )
    return root


ALL = Organisms(
    taboo={"red": "water", "blue": "word"},
    user_trait={"red": "man", "blue": "woman"},
    secret_constraint={"red": None},
    persona_qa={"blue": None},
    model_diffing={"red": "sport", "blue": "money"},
    questions={"user_trait": "Man or woman?"},
)


def secret_keeping(model, oracle, folder, **changes):
    values = {"organisms": ALL, "oracles": {"oracle": oracle}, "prompts": folder, "layers": 2}
    return secret_keeping_suite(model, **(values | changes))


def answered(suite, model):
    """Task -> arm -> its answers; None where it has nothing to say."""
    found = {}
    for entry in suite.entries:
        items = entry.task.items(model)
        arms = entry.arms(items) if callable(entry.arms) else entry.arms
        found[entry.task.name] = of_arms = {}
        for arm in arms:
            try:
                of_arms[arm.name] = arm.answer(items)
            except ArmNotApplicableError:
                of_arms[arm.name] = None
        for answers in of_arms.values():
            for item, answer in zip(items, answers or (), strict=False):
                assert 0 <= entry.task.score(item, answer) <= 1
    return found


def test_secret_keeping_runs_on_the_published_form(model, oracle, folder):
    suite = secret_keeping(
        model,
        oracle,
        folder,
        max_prompts=2,
        max_new_tokens=2,
        controls=("base", "no_activation"),
        baselines=("logit_lens", "mean_difference", "untrained"),
    )

    found = answered(suite, model)

    assert list(found) == [
        "taboo",
        "user_trait",
        "secret_constraint",
        "persona_qa",
        "persona_yes_no",
        "model_diffing",
    ]
    for name, arms in found.items():
        assert arms["oracle"] is not None
        assert arms["no_activation"] is not None
        # A difference has no base to be compared with.
        assert (arms["base"] is None) == (name == "model_diffing")
        assert ("linear probe" in arms) == (name in ("taboo", "user_trait"))
    assert suite.entries[1].task.question == "Man or woman?"


def test_only_tasks_with_organisms_stand_in_the_suite(model, oracle, folder):
    suite = secret_keeping(
        model,
        oracle,
        folder,
        organisms=Organisms(taboo={"red": "water", "blue": "word"}),
        prompt_set="standard",
        reply=True,
        positions=(-1,),
    )

    (entry,) = suite.entries
    assert entry.task.reply
    assert entry.task.positions == (-1,)
    with pytest.raises(EvalError, match="prompt_set"):
        secret_keeping(model, oracle, folder, prompt_set="indirect")
    with pytest.raises(DataError, match="gender_standard_val"):
        secret_keeping(
            model, oracle, folder / "absent", organisms=Organisms(taboo={"red": "a", "blue": "b"})
        )


def test_aobench_runs_on_the_published_form(model, oracle, folder):
    suite = aobench_suite(
        model,
        oracles={"oracle": oracle},
        layers=2,
        classification=folder / "classification",
        latentqa=folder / "latentqa",
        relations={str(folder / "r.tsv"): "Where?"},
        max_items=4,
        max_new_tokens=2,
        controls=("base", "random"),
        baselines=("text_reader", "token_similarity"),
    )

    found = answered(suite, model)

    assert list(found) == [
        "classification",
        "hidden_prompt",
        "state_not_tokens",
        "generative_qa/gist",
        "generative_qa/fact",
        "relation/r",
    ]
    for name, arms in found.items():
        assert arms["oracle"] is not None
        assert ("linear probe" in arms) == (name in ("classification", "hidden_prompt"))
    # The base's activations of the read tokens alone, or of the turns without the system turn.
    assert found["state_not_tokens"]["base"] is not None
    assert found["hidden_prompt"]["base"] is not None
    assert found["classification"]["base"] is None


def test_aobench_needs_a_file(model, oracle):
    with pytest.raises(EvalError, match="classification="):
        aobench_suite(model, oracles={"oracle": oracle}, layers=2)


@pytest.fixture(scope="module")
def personas(tmp_path_factory):
    """LatentQA's files with four hidden prompts of each of two categories."""
    root = tmp_path_factory.mktemp("latentqa")
    labels = [f"persona-{kind}-{n}" for kind in ("time", "job") for n in range(4)]
    qa = {label: [["Who?", f"It is {label}."], ["How?", "So."]] for label in labels}
    system = [{"label": x, "system": f"Be {x}", "stimulus_user": f"Hi {x}"} for x in labels]
    (root / "qa.json").write_text(json.dumps(qa))
    (root / "system.json").write_text(json.dumps(system))
    (root / "r.tsv").write_text(
        "subject\tobject\tprompt_source\n"
        + "".join(f"Anna{n}\t{('Paris', 'Rome')[n % 2]}\t by Anna{n}\n" for n in range(12))
    )
    return root


def latentqa(model, oracle, personas, **changes):
    values = {
        "latentqa": personas,
        "relations": None if personas is None else {str(personas / "r.tsv"): "Where?"},
        "candidates": 2,
        "max_items": 8,
        "max_new_tokens": 2,
        "controls": ("base",),
        "baselines": ("selfie", "patchscopes", "prompting", "text_reader"),
    }
    oracles = {"oracle": oracle, "another": oracle}
    return latentqa_suite(model, oracles=oracles, layers=2, **(values | changes))


@pytest.mark.parametrize("name", ["secret-keeping", "aobench", "latentqa"])
def test_each_suite_looks_for_an_oracle_of_another_base(model, oracle, folder, personas, name):
    other = dataclasses.replace(oracle.contract, base_digest="0" * 64)
    foreign = Oracle(model, oracle.adapter, other)
    quick = {"controls": (), "baselines": (), "probe": False}
    made = {
        "secret-keeping": lambda: secret_keeping(
            model, foreign, folder, organisms=Organisms(taboo=ALL.taboo), **quick
        ),
        "aobench": lambda: aobench_suite(
            model,
            oracles={"oracle": foreign},
            layers=2,
            relations={str(folder / "r.tsv"): "Where?"},
            **quick,
        ),
        "latentqa": lambda: latentqa(model, foreign, personas, **quick),
    }[name]()
    assert made.name == name
    with pytest.raises(EvalLeakError, match="trained on the base 000000000000"):
        run_suite(made, model, progress=False)


def test_latentqa_runs_on_the_published_form(model, oracle, personas):
    found = answered(latentqa(model, oracle, personas), model)

    assert list(found) == ["hidden_prompt/easy", "hidden_prompt/hard", "relation/r"]
    for name, arms in found.items():
        hidden = name.startswith("hidden")
        probe = "linear probe" if hidden else "linear probe of other units"
        for arm in ("SelfIE", "Patchscopes", "text-only reader", probe):
            assert arms[arm] is not None, (name, arm)
        assert (arms["prompting"] is None) == (not hidden)  # a relation's texts are no chats
        assert (arms["base"] is None) == (not hidden)
        one, same = ([answer.text for answer in arms[arm]] for arm in ("oracle", "another"))
        assert one == same


def test_easy_candidates_are_of_different_categories_and_hard_ones_of_one(model, oracle, personas):
    suite = latentqa(model, oracle, personas)
    easy, hard, relation = (entry.task for entry in suite.entries)

    assert all(len({prompt.category for prompt in group}) == 2 for group in easy.groups)
    assert all(len({prompt.category for prompt in group}) == 1 for group in hard.groups)
    assert len(easy.groups) == len(hard.groups) == 4
    assert len(relation.relation.mentions) == 8  # of 12
    for task, chance in ((easy, 0.5), (hard, 0.5), (relation, 0.5)):
        items = task.items(model)
        told = guessers.answers(items, guessers.told, scored=bool(items[0].choices))
        assert guessers.mean_score(task, items, told) == 1
        assert task.chance(items) == pytest.approx(chance, abs=0.13)
    for task in (easy, hard):
        items = task.items(model)
        for seed in range(5):
            blind = guessers.answers(items, same_in_group(seed), scored=True)
            assert guessers.mean_score(task, items, blind) == task.chance(items)


def same_in_group(seed):
    """Gives one answer to each list of candidates, whatever was read."""
    return lambda item: sorted(item.choices)[hash((seed, item.choices)) % len(item.choices)]


def test_latentqa_needs_files_with_groups(model, oracle, personas):
    with pytest.raises(EvalError, match="latentqa="):
        latentqa(model, oracle, None, latentqa=None, relations=None)
    with pytest.raises(EvalError, match="No 3 of the 8 hidden prompts are of different categories"):
        latentqa(model, oracle, personas, candidates=3)


def test_latentqa_on_real_files(shared, model, oracle):
    suite = latentqa_suite(
        model,
        oracles={"oracle": oracle},
        layers=2,
        latentqa=shared / "data" / "latentqa",
        max_items=8,
        probe=False,
    )

    easy, hard = (entry.task for entry in suite.entries)
    for task in (easy, hard):
        assert [len(spec.choices) for spec in task.specs()] == [4] * 8


def test_aobench_on_real_files(shared, model, oracle):
    data = shared / "data"

    suite = aobench_suite(
        model,
        oracles={"oracle": oracle},
        layers=2,
        classification=data / "activation_oracles" / "classification",
        latentqa=data / "latentqa",
    )

    sizes = {entry.task.name: len(entry.task.specs()) for entry in suite.entries}
    assert sizes == {
        "classification": 4 * 100 * 2 * 3,
        "hidden_prompt": 100,
        "state_not_tokens": 200,
        "generative_qa/gist": 100,
        "generative_qa/fact": 100,
    }


def test_all_arms_by_default(model, oracle):
    arms = standard_arms(model, {"oracle": oracle, "smaller": oracle}, neutral_prompts=["Hi"])

    assert len(arms) == 2 + 6 + len(BASELINES)
    assert len({arm.name for arm in arms}) == len(arms)
    assert [arm.kind for arm in arms[:3]] == ["oracle", "oracle", "control"]
    assert "mean-difference lens" not in {arm.name for arm in standard_arms(model, {"o": oracle})}
    with pytest.raises(EvalError, match="no oracle"):
        standard_arms(model, {})
    with pytest.raises(EvalError, match="crystal"):
        standard_arms(model, {"o": oracle}, baselines=["crystal ball"])


def test_the_probe_is_fitted_on_the_base_alone(model):
    task = Taboo(organisms={"red": "water", "blue": "word"}, prompts=["What is it?"], layers=2)
    make = told_probe(model, task, prompts=["A hint.", "A clue.", "More."], system="It is {label}.")

    (probe,) = make(task.items(model))

    assert probe.kind == "skyline"
    assert probe.classes == ("water", "word")
    assert probe.base_digest == model.base_digest
    with pytest.raises(EvalError, match="label"):
        told_probe(model, task, prompts=["x"], system="It is.")


YAML = """
adapters:
  green: ./green
  far: owner/name
taboo:
  green: moon
  far: [sun, sunlight]
secret_constraint: {green: null}
persona_qa: {green: people.jsonl, far: null}
questions:
  taboo: Which word?
"""


def test_organisms_from_a_file(tmp_path):
    (tmp_path / "green").mkdir()
    (tmp_path / "people.jsonl").write_text("")
    path = tmp_path / "organisms.yaml"
    path.write_text(YAML)

    found = read_organisms(path)

    assert found.adapters == {"green": str(tmp_path / "green"), "far": "owner/name"}
    assert found.taboo == {"green": "moon", "far": ("sun", "sunlight")}
    assert found.secret_constraint == {"green": None}
    assert found.persona_qa == {"green": str(tmp_path / "people.jsonl"), "far": None}
    assert found.names == ("green", "far")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("taboo: [", "neither YAML"),
        ("- taboo", "expected the keys"),
        ("", "expected the keys"),
        ("tabu: {a: b}", r"'tabu' is unknown"),
        ("taboo: moon", r"taboo: 'moon' must be a mapping"),
        ("taboo: {a: 3}", r"taboo, a: 3"),
        ("taboo: {a: [moon, no]}", r"taboo, a: False"),
        ("taboo: {a: ' '}", r"taboo, a"),
        ("taboo: {no: moon}", r"taboo: the key False"),
        ("user_trait: {a: [male]}", r"user_trait, a"),
        ("secret_constraint: {a: be kind}", r"a list of texts"),
        ("taboo: {a: null}", r"taboo, a: None"),
        ("adapters: {a: b}", "no organism"),
        ("taboo: {a: b}\nquestions: {persona_qa: Who?}", "persona_qa"),
        ("!!python/object:os.system {}", "neither YAML"),
    ],
)
def test_hostile_files_of_organisms(tmp_path, content, message):
    path = tmp_path / "organisms.yaml"
    path.write_text(content)

    with pytest.raises(EvalError, match=message) as caught:
        read_organisms(path)
    assert str(path) in str(caught.value)


def test_adapters_are_loaded_or_said_to_be_missing(tmp_path):
    import tiny

    model = tiny_items.target(tmp_path)
    tiny.save_adapter(tmp_path / "green", seed=7)

    Organisms(
        adapters={"green": str(tmp_path / "green")}, taboo={"green": "a", "red": "b"}
    ).load_into(model)

    assert "green" in model.adapter_names
    with pytest.raises(EvalError, match="no adapter 'grey'"):
        Organisms(taboo={"grey": "a"}).load_into(model)
    with pytest.raises(EvalError, match="no file"):
        read_organisms(tmp_path / "absent.yaml")


def test_groups_of_one_name_are_numbered():
    groups = [
        SpliceGroup(name=name, prompts={"a": "x end", "b": "y end"}, question="?")
        for name in ("one/two", "three/four", "one/two")
    ]
    names = [group.name for group in _each_name_once(groups)]
    assert names == ["one/two 1", "three/four", "one/two 2"]
