"""`aotoolkit data latentqa`: what it makes, and what it refuses in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aotoolkit.cli import app
from aotoolkit.data import load_latentqa
from aotoolkit.nano.corpus import HINT_REQUESTS, SECRET_SYSTEMS

SMALL = ("--max-new-tokens", 24, "--max-prompt-tokens", 128, "--dialogues", 2, "--spare", 4)


@pytest.fixture
def behaviours(tmp_path) -> Path:
    rows = [
        {"behaviour": system.format(noun=noun), "word": noun, "group": noun}
        for system, noun in zip(SECRET_SYSTEMS, ("tiger", "pear", "drill", "boat"), strict=False)
    ]
    path = tmp_path / "behaviours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "stimuli.txt").write_text("\n".join(HINT_REQUESTS))
    (tmp_path / "templates.json").write_text(json.dumps([["Which word?", "The {word}."]]))
    return path


def run(*args: object):
    return CliRunner().invoke(app, ["data", "latentqa", *(str(arg) for arg in args)])


def test_it_makes_data_for_the_embedded_model(behaviours, tmp_path):
    folder = behaviours.parent
    arguments = (
        *("--behaviours", behaviours, "--out", tmp_path / "out", *SMALL),
        *("--stimuli", folder / "stimuli.txt", "--templates", folder / "templates.json"),
        *("--hidden-field", "word", "--kind", "system", "--kind", "system_completion"),
        *("--validation-share", 0.25),
    )
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    report = json.loads(result.stdout)
    assert report["counts"]["train"] == load_latentqa(tmp_path / "out" / "train").counts
    assert set(report["counts"]["train"]) == {"system", "system_completion"}
    assert sum(report["behaviours"].values()) == 4
    qa = json.loads((tmp_path / "out" / "train" / "qa.json").read_text())
    assert all(question == "Which word?" for pairs in qa.values() for question, _ in pairs)
    printed = run(*arguments).stdout
    for name, count in report["dropped"].items():
        assert f"{count:6,} left out: {name}, " in printed
    assert "system_completion.json" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "what the model is told is missing"),
        (("--behaviours", "none.txt"), "There is no file none.txt"),
        (("--behaviour", " "), "A behaviour is ' '"),
        (("--behaviour", "Speak.", "--writer", "x", "--templates", "y"), "cannot be used with"),
        (("--behaviour", "Speak.", "--templates", "none.json"), "There is no file none.json"),
        (("--behaviour", "Speak.", "--hidden-field", "word"), "'word' is none of any behaviour"),
        (("--behaviour", "Speak.", "--chat-template-kwargs", "["), "is no JSON object"),
        (("--behaviour", "Speak.", "--stimulus", "Hi."), "but there are 1 different stimuli"),
        (("--behaviour", "Speak.", "--kind", "systems"), "'systems' is not one of"),
        (("--behaviour", "Speak.", "--validation-share", 2), "validation_share is 2.0"),
        (("--behaviour", "Speak.", "--model", "./none"), "none"),
        (("--behaviour", "Speak.", "--max-prompt-tokens", 500), "the context of"),
    ],
)
def test_bad_input_is_one_message_and_code_2(arguments, said, tmp_path):
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, (result.stdout, result.exception)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not result.stdout
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    result = run("--behaviour", "Speak.", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is a file, not a folder" in " ".join(result.stderr.replace("│", " ").split())
