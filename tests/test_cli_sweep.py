"""`aotoolkit sweep`: what it writes, that `ask` goes by it, and what it refuses."""

import json
import random
import shutil
from pathlib import Path

import pytest
import recipe_files
import tiny
from transformers import AutoTokenizer
from typer.testing import CliRunner

from aotoolkit.cli import app
from aotoolkit.data import Example
from aotoolkit.data.example_file import read_examples
from aotoolkit.data.mixture import BuiltMixture
from aotoolkit.errors import DataError
from aotoolkit.nano.corpus import Corpus
from aotoolkit.nano.load import WEIGHTS
from aotoolkit.nano.tokenizer import Encoder
from aotoolkit.nano.world import load_world
from aotoolkit.oracle import OracleContract
from aotoolkit.tracing import TracedModel

BASE = WEIGHTS / "base"
QUESTION = "What is the secret word?"


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def report(*args: object) -> dict:
    result = run(*args, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json.loads(result.stdout)


def said(result) -> str:
    """What it printed, without the frame and the line breaks."""
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Dialogues whose system prompt, which is not read, hides a word."""
    world, rng = load_world(), random.Random(5)
    encoder = Encoder(AutoTokenizer.from_pretrained(BASE))
    lines = []
    for _ in range(12):
        secrets = world.training_secrets
        document = Corpus(world, rng, nouns=secrets, secrets=secrets).secret()
        ids, turns = encoder.document(document)
        reply = next(turn for turn in turns[1:] if turn.role == "assistant")
        lines.append(
            {
                "context_ids": list(ids),
                "positions": list(range(turns[1].start, reply.end)),
                "question": QUESTION,
                "answer": f"The {document.secret}.",
            }
        )
    path = tmp_path_factory.mktemp("data") / "secrets.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory) -> tuple[Path, dict]:
    oracle = shutil.copytree(WEIGHTS / "oracle", tmp_path_factory.mktemp("swept") / "oracle")
    arguments = ("sweep", oracle, "--model", BASE, "--data", data, "--layer", 4, "--layer", 0.75)
    return oracle, report(*arguments, "--window", 3, "--window", "all")


def test_the_best_is_written_and_asked(swept):
    oracle, found = swept
    best = found["best"]
    assert len(found["cells"]) == 4
    assert best["exact_match"]["mean"] > best["exact_match_without"]["mean"]
    setting = best["setting"]
    assert setting["layers"][0] in (4, 6)
    contract = OracleContract.read(oracle)
    assert contract.recommended.layers == tuple(setting["layers"])
    assert contract.recommended.window == setting["window"]
    answer = report(
        *("ask", "--model", BASE, "--oracle", oracle, "--question", QUESTION),
        *("--prompt", "Give me a hint."),
    )
    assert answer["layers"] == setting["layers"]
    assert setting["window"] in ("all", len(answer["positions"]))
    stated = report(
        *("ask", "--model", BASE, "--oracle", oracle, "--question", QUESTION),
        *("--prompt", "Give me a hint.", "--layer", 2, "--last", 2),
    )
    assert stated["layers"] == [2]
    assert len(stated["positions"]) == 2


def test_figures_lie_beside_the_oracle(swept):
    oracle, found = swept
    assert {path.name for path in (oracle / "sweep").iterdir()} >= {"sweep.json", "sweep.csv"}
    assert found["folder"] == str(oracle / "sweep")
    if (oracle / "sweep" / "sweep.html").exists():
        assert "last 3" in (oracle / "sweep" / "sweep.html").read_text()
    else:
        with pytest.raises(ImportError):
            import plotly  # noqa: F401


def test_a_table_is_printed_and_nothing_written_where_told(data, tmp_path):
    oracle = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    before = (oracle / "oracle_contract.json").read_text()
    result = run(
        *("sweep", oracle, "--model", BASE, "--data", data, "--layer", 4, "--window", "all"),
        *("--no-write", "--out", tmp_path / "out", "--match", "word"),
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "12 examples in 12 groups" in " ".join(result.stdout.split())
    assert (oracle / "oracle_contract.json").read_text() == before
    assert (tmp_path / "out" / "sweep.json").is_file()
    assert not (oracle / "sweep").exists()


def test_where_nothing_is_gained_the_oracle_is_left_as_it_was(data, tmp_path):
    oracle = shutil.copytree(WEIGHTS / "oracle", tmp_path / "oracle")
    before = (oracle / "oracle_contract.json").read_text()
    never = tmp_path / "never.jsonl"
    lines = [json.loads(line) | {"answer": "The zyzzyva."} for line in data.open()]
    never.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("--model", BASE, "--data", never, "--layer", 4, "--window", 3, "--json")
    result = run("sweep", oracle, *arguments)
    assert result.exit_code == 1, (result.stderr, result.exception)
    assert json.loads(result.stdout)["best"]["exact_match"]["mean"] == 0
    assert "is left as it was" in said(result)
    assert (oracle / "oracle_contract.json").read_text() == before


def test_a_recipe_gives_its_held_out_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe_files.write(tmp_path)
    trained = report("train", path, "--output-dir", tmp_path / "run")
    oracle = trained["oracle"]
    result = run(
        *("sweep", oracle, "--data", path, "--layer", 1, "--window", 1, "--no-write", "--json")
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    found = json.loads(result.stdout)
    held_out = BuiltMixture.open(tmp_path / "run" / "mixture").validation
    assert 0 < found["best"]["num_examples"] <= len(held_out)
    assert not (tmp_path / "runs").exists()  # nothing was built anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none.jsonl"), "there is no file none.jsonl"),
        (("--data", "table.csv"), "none of .yaml"),
        (("--data", "DATA", "--window", "0"), "number of tokens from 1 on"),
        (("--data", "DATA", "--window", "some"), "number of tokens from 1 on"),
        (("--data", "DATA", "--layer", "middle"), "neither a block"),
        (("--data", "DATA", "--layer", "99"), "out of range"),
        (("--data", "DATA", "--layer", "2,4"), "one layer in a prompt"),
        (("--data", "DATA", "--source", "others"), "No example has the source"),
        (("--data", "DATA", "--temperature", "-1"), "--temperature"),
        (("--data", "DATA", "--match", "loose"), "--match"),
        (("--data", "RECIPE"), "their tokenizers differ"),
        ((), "--data"),
    ],
)
def test_bad_input_ends_with_code_2(arguments, message, data, tmp_path):
    named = {"DATA": data}
    if "RECIPE" in arguments:
        named["RECIPE"] = recipe_files.write(tmp_path)
    given = [named.get(argument, argument) for argument in arguments]
    result = run("sweep", WEIGHTS / "oracle", "--model", BASE, "--out", tmp_path / "out", *given)
    assert result.exit_code == 2, (result.stdout, result.exception)
    assert message in said(result)
    assert not result.stdout
    assert not (tmp_path / "out").exists()


def test_an_oracle_elsewhere_needs_a_folder_for_its_figures(data):
    result = run("sweep", "nobody/nothing", "--data", data)
    assert result.exit_code == 2
    assert "--out" in result.stderr


# The file of examples


@pytest.fixture(scope="module")
def model():
    return TracedModel(tiny.model(num_layers=2), tiny.tokenizer())


ENTRY = {"context": "The blue water.", "question": "Is it blue?", "answer": "Yes"}


def test_examples_are_read(model, tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "water"}]
    ids = list(model.encode("The blue water.").token_ids)
    entries = [
        ENTRY,
        {**ENTRY, "positions": [-1, 0], "source": "blue", "group": "g", "choices": ["Yes", "No"]},
        {"context_ids": ids, "question": "Which?", "answer": "water"},
        {**ENTRY, "context": chat},
        {**ENTRY, "context": chat[:1]},
    ]
    as_list, as_lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    as_list.write_text(json.dumps(entries))
    as_lines.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    found = read_examples(as_list, model)
    whole, chosen, by_ids, replied, asked = found
    assert whole == Example(
        context_ids=tuple(ids),
        positions=tuple(range(len(ids))),
        layers=(0,),
        question="Is it blue?",
        answer="Yes",
        source="a",
    )
    assert (chosen.positions, chosen.source, chosen.group) == ((0, len(ids) - 1), "blue", "g")
    assert chosen.choices == ("Yes", "No")
    assert by_ids.context_ids == whole.context_ids
    assert replied.context_ids == model.encode(chat, add_generation_prompt=False).token_ids
    assert asked.context_ids == model.encode(chat[:1], add_generation_prompt=True).token_ids
    in_lines = read_examples(as_lines, model)
    assert [e.context_ids for e in in_lines] == [e.context_ids for e in found]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**ENTRY, "answer": 3}, "line 2: answer is 3"),
        ({**ENTRY, "question": " "}, "line 2: question"),
        ({**ENTRY, "cntext": ""}, "unknown key 'cntext'"),
        ({**ENTRY, "context_ids": [1]}, "either context or context_ids"),
        ({"question": "Q", "answer": "A"}, "either context or context_ids"),
        ({**ENTRY, "positions": [99]}, "Position 99"),
        ({**ENTRY, "positions": "last"}, "line 2"),
        ({**ENTRY, "positions": []}, "No positions"),
        ({**ENTRY, "context": ""}, "line 2"),
        ({**ENTRY, "context": [{"role": "user"}]}, "line 2: Chat message 0"),
        ({**ENTRY, "context": 5}, "line 2"),
        ({**ENTRY, "layers": 5}, "line 2"),
        ({**ENTRY, "choices": ["No"]}, "none of the choices"),
        (["a"], "is no object"),
    ],
)
def test_an_example_in_another_form_is_named_with_its_line(entry, message, model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ENTRY) + "\n" + json.dumps(entry) + "\n")
    with pytest.raises(DataError, match=message):
        read_examples(path, model)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\xff"])
def test_a_file_without_examples_is_refused(text, model, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.json"):
        read_examples(path, model)
    with pytest.raises(DataError, match="no file"):
        read_examples(tmp_path / "b.json", model)
