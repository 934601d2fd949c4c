"""`aotoolkit eval`: what it prints and keeps, and how it fails."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from typer.testing import CliRunner

from aotoolkit.cli import app
from aotoolkit.evals import ArmAnswer, LeakFindings, Suite, SuiteEntry, read_items
from aotoolkit.evals.items import ItemSpec
from aotoolkit.oracle import Oracle
from aotoolkit.tracing import TracedModel
from aotoolkit.training import default_contract


class Task:
    name = "taboo"
    unit = "organism"
    metric = "names the word"
    secret_keeping = True
    secondary = ("twice",)

    def items(self, model):
        specs = [
            ItemSpec(
                id=str(number),
                task=self.name,
                unit=str(number % 3),
                question="Which word?",
                answers=("water",),
                choices=("water", "word"),
                prompt="The word is blue",
            )
            for number in range(6)
        ]
        return read_items(model, specs, layers=1)

    def score(self, item, answer):
        return float(answer.text == "water")

    def secondary_score(self, name, item, answer):
        return 0.0


class Arm:
    def __init__(self, name, kind, said, seed=None):
        self.name = name
        self.kind = kind
        self.said = said
        self.oracle_seed = seed

    def answer(self, items):
        return [ArmAnswer(item=item.id, arm=self.name, text=self.said) for item in items]


class Leak:
    def find(self, model, read):
        return LeakFindings(leaks=("The word 'water' was trained on.",))


def made(name, *, baselines=True, leaks=False):
    arms = [Arm("oracle", "oracle", "water", seed) for seed in (0, 1)]
    arms += [Arm("lens", "baseline", "word")] if baselines else []
    return Suite(
        name=name,
        entries=(SuiteEntry(task=Task(), arms=arms),),
        leak_checks=(Leak(),) if leaks else (),
    )


@pytest.fixture
def asked(monkeypatch):
    """Suites and the report in place of the real ones; what they were given."""
    given = []
    model = TracedModel(tiny.model(num_layers=2), tiny.tokenizer())

    def load(kinds, decoder):
        return SimpleNamespace(model=model, kinds=kinds)

    monkeypatch.setattr("aotoolkit.nano.load", load)

    def embedded(name):
        def suite(lab, *, baselines, **options):
            given.append({"suite": name, "lab": lab, "baselines": baselines, **options})
            return made(name, baselines=baselines, leaks=given[0].get("leaks", False))

        return suite

    def write_report(result, folder, *, model):
        (Path(folder) / "report.html").write_text(model)

    suites = SimpleNamespace(nano_suite=embedded("nano"), nano_latentqa_suite=embedded("latentqa"))
    monkeypatch.setitem(sys.modules, "aotoolkit.nano.suite", suites)
    monkeypatch.setitem(
        sys.modules, "aotoolkit.evals.report", SimpleNamespace(write_report=write_report)
    )

    def own(name):
        def suite(model, **options):
            given.append({"suite": name, "model": model, **options})
            return made(name)

        return suite

    suites = SimpleNamespace(
        secret_keeping_suite=own("secret-keeping"),
        aobench_suite=own("aobench"),
        latentqa_suite=own("latentqa"),
    )
    monkeypatch.setattr("aotoolkit.evals.suites", suites, raising=False)
    return given


def run(*args: object):
    return CliRunner().invoke(app, ["eval", *[str(arg) for arg in args]])


def said(result) -> str:
    return " ".join(result.stderr.replace("│", " ").split())


def test_a_table_is_printed_and_kept(asked, tmp_path):
    result = run("--suite", "nano", "--out", tmp_path / "out", "--confidence", "agreement")
    assert result.exit_code == 0, (result.stderr, result.exception)
    text = " ".join(result.stdout.split())
    assert "taboo: names the word, secret-keeping" in text
    assert "at or above the best baseline on 1 of 1" in text
    assert str(tmp_path / "out") in text.replace(" ", "")
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"results.jsonl", "table.json", "report.html"}
    assert (asked[0]["quick"], asked[0]["baselines"]) == (False, True)
    assert asked[0]["confidence"] == "agreement"


def test_json_is_one_object(asked):
    result = run("--suite", "nano", "--quick", "--no-baselines", "--seeds", "1", "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    report = json.loads(result.stdout)
    assert set(report) == {
        *("suite", "rows", "notes", "claims", "confidence", "comparisons", "seconds")
    }
    assert (
        report["confidence"] == report["comparisons"] == []
    )  # these arms do not say how sure they are
    assert report["suite"] == "nano"
    first, second = report["rows"]
    assert set(first) == {
        *("suite", "task", "arm", "kind", "metric", "mean", "low", "high", "n", "unit", "void"),
        *("chance", "num_items", "num_seeds", "difference"),
    }
    assert (first["arm"], first["mean"], first["n"], first["num_seeds"]) == ("oracle", 1.0, 3, 1)
    assert (second["metric"], second["chance"]) == ("twice", None)
    assert (asked[0]["quick"], asked[0]["baselines"]) == (True, False)


def test_a_leak_ends_with_code_1_and_no_result(asked, tmp_path):
    asked.append({"leaks": True})
    result = run("--suite", "nano", "--json", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "Error: The suite 'nano' leaks" in said(result)
    assert "'water' was trained on" in said(result)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A base, and two oracles that are both in a folder named `oracle`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    hf_model = tiny.model(num_layers=3)
    hf_model.save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    (folder / "files" / "classification").mkdir(parents=True)
    (folder / "organisms.yaml").write_text("taboo: {red: water}")
    for name, seed in (("a", 1), ("b", 2)):
        tiny.save_adapter(folder / f"lora{name}", num_layers=3, seed=seed)
        model = TracedModel.from_pretrained(folder / "base")
        model.load_adapter("own", folder / f"lora{name}")
        contract = default_contract(model, read_layers=(1,))
        Oracle(model, "own", contract).save_pretrained(folder / name / "oracle")
    return folder


def own_model(folder: Path) -> tuple:
    return (
        *("--model", folder / "base", "--oracle", folder / "a" / "oracle"),
        *("--adapter", f"red={folder / 'loraa'}"),
    )


def test_suites_of_ones_own_model(asked, checkpoints, tmp_path):
    other = checkpoints / "b" / "oracle"
    result = run(
        *("--suite", "all", *own_model(checkpoints), "--oracle", other),
        *("--organisms", checkpoints / "organisms.yaml", "--prompts", checkpoints / "files"),
        *("--relation", "capitals.tsv=Which city is it?", "--out", tmp_path, "--json", "--quick"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    report = json.loads(result.stdout)
    assert report["suite"] == "all"
    suites = ["secret-keeping", "aobench", "latentqa"]
    assert [row["suite"] for row in report["rows"][::4]] == suites
    secret, bench, latentqa = asked
    assert secret["model"] is bench["model"]
    assert secret["model"].adapter_names[0] == "red"
    assert list(secret["oracles"]) == [str(checkpoints / "a" / "oracle"), str(other)]
    assert secret["layers"] == [1]
    assert secret["organisms"] == checkpoints / "organisms.yaml"
    assert (secret["max_prompts"], bench["max_items"]) == (5, 5)
    # Each suite has its own, and no option changes them.
    assert all("leak_checks" not in one for one in asked)
    assert "baselines" not in secret
    assert bench["classification"] == checkpoints / "files" / "classification"
    assert bench["relations"] == latentqa["relations"] == {"capitals.tsv": "Which city is it?"}
    assert latentqa["max_items"] == 5
    assert {path.name for path in tmp_path.iterdir()} == set(suites)


def test_all_runs_what_applies(asked, checkpoints):
    result = run("--suite", "all", "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert {row["suite"] for row in json.loads(result.stdout)["rows"]} == {"nano", "latentqa"}
    assert all(one["oracles"] == {} and one["layers"] is None for one in asked)
    result = run(
        *("--suite", "all", *own_model(checkpoints), "--prompts", checkpoints / "files"),
        *("--layer", 0.5, "--no-baselines", "--json"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert {row["suite"] for row in json.loads(result.stdout)["rows"]} == {"aobench"}
    assert "secret-keeping is left out: give --organisms" in said(result)
    assert asked[-1]["layers"] == [0.5]
    assert asked[-1]["baselines"] == ()
    assert asked[-1]["confidence"] is None
    assert list(asked[-1]["oracles"]) == ["oracle"]


def test_oracles_of_the_embedded_models_are_named_by_the_end_of_their_path(asked, monkeypatch):
    monkeypatch.setattr(Oracle, "from_pretrained", lambda path, *, model: (path, model))
    result = run(
        *("--suite", "latentqa", "--oracle", "aotoolkit/nano", "--oracle", "runs/a/decoder"),
        *("--layer", 4, "--quick", "--json"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    (given,) = asked
    assert {name: path for name, (path, _) in given["oracles"].items()} == {
        "nano": "aotoolkit/nano",
        "decoder": "runs/a/decoder",
    }
    assert (given["suite"], given["layers"], given["quick"]) == ("latentqa", [4], True)
    assert given["lab"].kinds == ()


BAD = {
    "no suite": ((), "--suite"),
    "another suite": (("--suite", "all-of-them"), "--suite"),
    "nano with a model": (("--suite", "nano", "--model", "x"), "embedded"),
    "no oracle": (("--suite", "aobench", "--model", "x", "--latentqa", "y"), "--oracle"),
    "no organisms": (("--suite", "secret-keeping", "--model", "x"), "--organisms"),
    "nothing to ask": (("--suite", "aobench", "--model", "x", "--oracle", "y"), "--latentqa"),
    "nothing applies": (("--suite", "all", "--latentqa", "x"), "no suite can be run"),
    "files without a model": (("--suite", "latentqa", "--latentqa", "x"), "needs --model"),
    "a model without files": (
        ("--suite", "latentqa", "--model", "x", "--oracle", "y"),
        "--latentqa or --relation",
    ),
    "an adapter where none is read": (
        ("--suite", "aobench", "OWN", "--latentqa", "x"),
        "Invalid value for --adapter: not used by aobench",
    ),
    "relations for organisms": (
        ("--suite", "secret-keeping", "OWN", "--relation", "file=What?", "--latentqa", "x"),
        "Invalid value for --latentqa, --relation: not used by secret-keeping",
    ),
    "prompts without what is read of them": (
        (
            *("--suite", "aobench", "--model", "x", "--oracle", "y"),
            *("--prompts", ".", "--latentqa", "z"),
        ),
        "Invalid value for --prompts: there is no folder classification in .",
    ),
    "all, with prompts that serve no suite": (
        ("--suite", "all", "--model", "x", "--oracle", "y", "--prompts", "."),
        "no suite can be run",
    ),
    "no such file": (("--suite", "secret-keeping", "--organisms", "none.yaml"), "there is no none"),
    "seeds in words": (("--suite", "nano", "--seeds", "first"), "whole numbers"),
    "seeds that are not there": (("--suite", "nano", "--seeds", "7"), "have the seeds 0, 1"),
    "a precision above 1": (("--suite", "nano", "--precision", "1.2"), "no share above 0"),
    "another confidence": (("--suite", "nano", "--confidence", "its own word"), "--confidence"),
    "out is a file": (("--suite", "nano", "--out", __file__), "not a folder"),
    "a relation without a question": (
        ("--suite", "aobench", "OWN", "--relation", "file"),
        "FILE=QUESTION",
    ),
    "an adapter without a name": (
        (
            "--suite",
            "aobench",
            "--model",
            "x",
            "--oracle",
            "y",
            "--latentqa",
            "z",
            "--adapter",
            "a",
        ),
        "NAME=PATH",
    ),
    "a model that is not there": (
        ("--suite", "aobench", "--model", "./none", "--oracle", "y", "--latentqa", "z"),
        "no model folder",
    ),
}


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=list(BAD))
def test_bad_input_ends_with_code_2(asked, checkpoints, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = []
    for arg in args:
        given += own_model(checkpoints) if arg == "OWN" else (arg,)
    result = run(*given)
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert message in said(result)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
