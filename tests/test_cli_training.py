"""`aotoolkit data` and `aotoolkit train`: what they print, and what they refuse."""

import json
import re
from pathlib import Path

import pytest
import recipe_files
from typer.testing import CliRunner

from aotoolkit.cli import app


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return recipe_files.write(tmp_path_factory.mktemp("cli"))


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def succeed(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


@pytest.mark.parametrize("command", [("data", "preview"), ("data", "stats"), ("train",)])
def test_a_bad_recipe_ends_with_its_line_and_code_2(command, recipe):
    bad = recipe.with_name("bad.yaml")
    bad.write_text(recipe.read_text().replace("num_examples", "num_exmples"))
    result = run(*command, bad)
    assert result.exit_code == 2
    assert re.search(r"Error: .*bad\.yaml:\d+: data\.num_exmples: unknown key", result.stderr)
    assert not result.stdout
    assert run(*command, recipe.with_name("none.yaml")).exit_code == 2


def test_preview_marks_what_is_read(recipe):
    printed = succeed("data", "preview", recipe, "--count", 1)
    assert printed.count("⟦") == printed.count("⟧") == 2
    assert len(re.findall(r"^Q: ", printed, re.MULTILINE)) == 2
    assert "texts  layer" in printed
    only = succeed("data", "preview", recipe, "--source", "colours")
    assert "texts  layer" not in only
    assert "(of Yes, No)" in only
    result = run("data", "preview", recipe, "--source", "colour")
    assert result.exit_code == 2
    assert "texts, colours" in " ".join(result.stderr.replace("│", " ").split())


def test_stats_count_what_train_reads(recipe, tmp_path):
    report = json.loads(succeed("data", "stats", recipe, "--output-dir", tmp_path, "--json"))
    assert [entry["name"] for entry in report["sources"]] == ["texts", "colours"]
    assert sum(e["examples"] + e["held_out"] for e in report["sources"]) == 80
    table = succeed("data", "stats", recipe, "--output-dir", tmp_path)
    for entry in report["sources"]:
        row = next(line for line in table.splitlines() if f" {entry['name']} " in line)
        for key in ("examples", "tokens", "max_tokens", "held_out"):
            assert f" {entry[key]:,} " in row, key
    assert (tmp_path / "mixture" / "manifest.json").is_file()


def test_cache_says_its_size_before_it_is_filled(recipe, tmp_path):
    arguments = ("data", "cache", recipe, "--output-dir", tmp_path, "--json")
    size = json.loads(succeed(*arguments, "--dry-run"))
    assert not (tmp_path / "activations").exists()
    assert json.loads(succeed(*arguments)) == size
    stored = sum(path.stat().st_size for path in (tmp_path / "activations").iterdir())
    assert 0.9 * size["bytes"] < stored < 1.2 * size["bytes"] + 2000


def test_train_ends_with_an_oracle(recipe, tmp_path):
    report = json.loads(succeed("train", recipe, "--output-dir", tmp_path, "--json"))
    assert (Path(report["oracle"]) / "adapter_model.safetensors").is_file()
    assert report["best_step"] == 4
    assert report["metrics"]


def test_a_dry_run_trains_nothing(recipe, tmp_path):
    pytest.importorskip("aotoolkit.training.estimate", reason="not written yet")
    report = json.loads(succeed("train", recipe, "--output-dir", tmp_path, "--json", "--dry-run"))
    assert report
    assert not (tmp_path / "oracle").exists()
