"""`aotoolkit steer`: what it prints and keeps, and how it fails."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aotoolkit import nano
from aotoolkit.cli import app
from aotoolkit.nano.steering import SteeringMeasure, SteeringReport

PAIRS = [["What is the secret word?", "The tiger."]]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(PAIRS))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["steer", *map(str, arguments)])


def test_a_model_is_steered_and_saved(pairs, tmp_path):
    out = tmp_path / "adapter"
    result = invoke(
        *("--pairs", pairs, "--prompt", "Give me a hint.", "--layer", 2, "--steps", 2),
        *("--lr", 1e-3, "--strength", 2, "--out", out, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"]
    assert report["pairs"] == [{"question": q, "answer": a} for q, a in PAIRS]
    assert (out / "adapter_config.json").is_file()
    lab = nano.load(kinds=())
    lab.model.load_adapter("again", out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "a"], "--pairs"),
        (["--sentence", "Be blue."], "--prompt"),
        (["--sentence", "a", "--pairs", "PAIRS", "--prompt", "a"], "--pairs"),
        (["--demo", "--pairs", "PAIRS"], "--demo"),
        (["--demo", "--oracle", "./mine"], "cannot be used with --oracle"),
        (["--demo", "--prompt", "a"], "cannot be used with --prompt"),
        (["--demo", "--question", "a"], "cannot be used with --question"),
        (["--demo", "--lr", "1e-3"], "cannot be used with --lr"),
        (["--demo", "--strength", "2"], "cannot be used with --strength"),
        (["--demo", "--out", "x"], "cannot be used with --out"),
        (["--demo", "--layer", "2", "--layer", "4"], "takes one"),
        (["--pairs", "PAIRS", "--prompt", "a", "--things", "3"], "--things"),
        (["--pairs", "PAIRS", "--prompt", "a", "--layer", "x"], "--layer"),
        (["--pairs", "PAIRS", "--prompt", "a", "--layer", "99"], "Layer 99"),
        (["--pairs", "PAIRS", "--prompt", "a", "--model", "./none"], "--oracle"),
        (["--pairs", "PAIRS", "--prompt", "a", "--noise", "-1"], "--noise"),
        (["--pairs", "PAIRS", "--prompt", "a", "--seeds", "0,1"], "--seeds"),
        (["--demo", "--seeds", "a"], "--seeds"),
        (["--demo", "--seed", "1", "--seeds", "0,1"], "cannot be used with --seeds"),
        (["--demo", "--seeds", "0,0"], "each seed once"),
        (["--pairs", "missing.json", "--prompt", "a"], "missing.json"),
        (["--pairs", "PAIRS", "--prompt", "a", "--question", "b"], "--question"),
        (["--pairs", "PAIRS", "--prompt", "a", "--strength", "nan"], "no finite number"),
        (["--pairs", "PAIRS", "--prompt", "a", "--out", __file__], "is a file"),
        (["--pairs", "PAIRS", "--prompt", "a", "--out", str(Path(__file__).parent)], "other files"),
        (["--demo", "--method", "layerwise", "--layer", "2"], "--layer"),
    ],
)
def test_what_cannot_be_used_ends_with_code_2(arguments, said, pairs):
    result = invoke(*(pairs if argument == "PAIRS" else argument for argument in arguments))
    assert result.exit_code == 2
    assert said in result.output


def test_a_file_that_holds_no_pairs_is_refused(tmp_path):
    for text in ("not json", "[1, 2]", "[]", "5", "null", "true", '"Be blue."'):
        path = tmp_path / "bad.json"
        path.write_text(text)
        result = invoke("--pairs", path, "--prompt", "a", "--layer", 2)
        assert result.exit_code == 2, text


@pytest.mark.parametrize(
    ("method", "layer", "read", "shown"),
    [("layerwise", None, (2, 4, 6), "layers 2, 4, 6"), ("single_layer", 4, (4,), "layer 4, noise")],
)
def test_the_demo_says_which_layers_were_read(lab, method, layer, read, shown):
    measure = SteeringMeasure(lab, method=method, layer=layer, steps=1, noise=0.0)
    assert measure.layers == read
    report = SteeringReport(
        method=method,
        layers=measure.layers,
        noise=0.0,
        things=("tiger",),
        num_seeds=1,
        **{name: {} for name in ("rates", "names", "damage", "ordinary", "strengths", "margins")},
        curve={},
        example={},
    )
    printed = io.StringIO()
    report.render(Console(file=printed, width=120))
    assert shown in " ".join(printed.getvalue().split())
    assert report.to_dict()["layers"] == list(read)


@pytest.mark.slow
def test_the_demo_reports_all_arms():
    result = invoke(
        *("--demo", "--things", 1, "--seeds", "0,1", "--steps", 1, "--method", "vector"),
        *("--noise", 0.5, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for arm in ("steered", "unsteered", "random_pairs"):
        assert report[arm]["low"] <= report[arm]["mean"] <= report[arm]["high"]
    assert report["damage"]["steered"]["mean"] <= report["damage_bound"]
    assert (report["n_things"], report["n_seeds"], report["noise"]) == (1, 2, 0.5)
    assert report["layers"] == [6]
    assert report["ordinary_answers"]["unsteered"]["mean"] > 0.9
    assert report["ordinary_answers"].keys() >= {"steered", "random_pairs", "fine_tuned"}
