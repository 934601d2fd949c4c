"""The command `aotoolkit`: what it reports, and that bad input ends with a message and code 2."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import aotoolkit as ao
from aotoolkit.cli import app

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "aotoolkit" / "nano" / "weights"
QUESTION = "What is the secret word?"
ASK = ("ask", "--question", QUESTION, "--prompt", "Give me a hint.")
OWN = ("--model", str(WEIGHTS / "base"), "--oracle", str(WEIGHTS / "oracle"))


@pytest.fixture(scope="module")
def lab():
    return ao.nano.load()


@pytest.fixture(scope="module")
def organism(lab) -> str:
    return next(iter(lab.organisms))


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def report(*args: object) -> dict:
    """The one JSON object on stdout."""
    result = run(*args, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json.loads(result.stdout)


# --- bad input -----------------------------------------------------------------------------------

BAD = {
    "no such command": ("dmeo",),
    "no such option": ("demo", "--treads", 1),
    "an argument too many": ("demo", "now"),
    "no threads": ("demo", "--threads", 0),
    "threads in words": ("demo", "--threads", "two"),
    "no question": ("ask", "--prompt", "Hello."),
    "no prompt": ("ask", "--question", QUESTION),
    "amplify without an adapter": (*ASK, "--amplify", "2"),
    "amplify by less than nothing": (*ASK, "--organism", "boat", "--amplify", "-1"),
    "an empty question": ("ask", "--question", " ", "--prompt", "Hello."),
    "an empty prompt": ("ask", "--question", QUESTION, "--prompt", "", "--plain"),
    "chat markup in the question": ("ask", "--question", "a<|im_end|>b", "--prompt", "Hello."),
    "half of a JSON prompt": ("ask", "--question", QUESTION, "--prompt", '[{"role": "user"'),
    "a template argument without JSON": (*ASK, "--chat-template-kwargs", "enable_thinking"),
    "template arguments in a list": (*ASK, "--chat-template-kwargs", "[1]"),
    "a message without content": ("ask", "--question", QUESTION, "--prompt", '[{"role": "user"}]'),
    "an unknown organism": (*ASK, "--organism", "no-such-organism"),
    "an organism of another model": (*ASK, *OWN, "--organism", "x"),
    "an organism and an adapter": (*ASK, "--organism", "x", "--adapter", "y=z"),
    "a layer in words": (*ASK, "--layer", "middle"),
    "a layer that is not there": (*ASK, "--layer", 99),
    "a fraction above one": (*ASK, "--layer", 1.5),
    "positions in words": (*ASK, "--positions", "first"),
    "positions with two colons": (*ASK, "--positions", "1:2:3"),
    "a position that is not there": (*ASK, "--positions", 5000),
    "an empty range": (*ASK, "--positions", "3:3"),
    "no last token": (*ASK, "--last", 0),
    "positions and last": (*ASK, "--positions", "1", "--last", 1),
    "a reply without a chat": (*ASK, "--plain", "--reply"),
    "a model without an oracle": (*ASK, "--model", WEIGHTS / "base"),
    "a model that is not there": (*ASK, "--model", "./no-model", "--oracle", WEIGHTS / "oracle"),
    "a model that is not downloaded": (*ASK, "--model", "no/model", "--oracle", WEIGHTS / "oracle"),
    "an oracle that is not there": (*ASK, "--oracle", "./no-oracle"),
    "an oracle that is not downloaded": (*ASK, "--oracle", "no/oracle"),
    "a folder that is no oracle": (*ASK, "--oracle", WEIGHTS / "base"),
    "an adapter without a name": (*ASK, "--adapter", "path"),
    "an adapter without a path": (*ASK, "--adapter", "name="),
    "an adapter that is not there": (*ASK, "--adapter", "name=./no-adapter"),
    "a folder that is no adapter": (*ASK, "--adapter", f"name={WEIGHTS / 'base'}"),
    "nothing to inspect": ("inspect",),
    "a checkpoint that is not there": ("inspect", "./no-oracle"),
    "a checkpoint that is a file": ("inspect", ROOT / "LICENSE"),
    "a folder that is no checkpoint": ("inspect", ROOT),
    "a base that is not there": ("inspect", WEIGHTS / "oracle", "--model", "./no-model"),
    "nowhere to build": ("nano", "build"),
    "a file to build in": ("nano", "build", "--out", ROOT / "LICENSE"),
    "no such part": ("nano", "build", "--out", "x", "--part", "roof"),
    "a base seed for organisms": (
        *("nano", "build", "--out", "x", "--part", "organisms", "--base-seed", 1),
    ),
    "no threads to build with": ("nano", "build", "--out", "x", "--threads", 0),
}


@pytest.mark.parametrize("args", BAD.values(), ids=list(BAD))
def test_bad_input_is_said_on_stderr_with_code_2(args: tuple, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2, (result.exit_code, result.stderr, result.exception)
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [], "bad input leaves nothing behind"


def test_a_part_that_needs_an_earlier_one_says_so(tmp_path: Path):
    result = run("nano", "build", "--out", tmp_path, "--part", "oracle")
    assert result.exit_code == 2
    assert "--part base" in result.stderr


def test_the_installed_command_shows_no_traceback_either():
    args = [sys.executable, "-m", "aotoolkit", "inspect", "./no-oracle"]
    result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no-oracle" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("aotoolkit.oracle.inspect_checkpoint", broken)
    assert isinstance(run("inspect", "x").exception, ZeroDivisionError)


# --- reports -------------------------------------------------------------------------------------


def test_version():
    assert run("--version").stdout == f"aotoolkit {ao.__version__}\n"


def test_ask_reports_what_the_library_answers(lab, organism: str):
    said = report(*ASK, "--organism", organism, "--last", 4)
    acts = lab.model.activations(
        [{"role": "user", "content": "Give me a hint."}],
        layers=said["layers"],
        adapter=organism,
        positions=slice(-4, None),
    )
    answer = lab.oracle.ask(QUESTION, acts)
    assert said["text"] == answer.text
    assert said["controls"] == dict(answer.controls)
    assert set(said["controls"]) == {"no_activation", "zero", "random", "shuffled", "base"}
    assert said["supported"] is answer.supported
    assert tuple(said["positions"]) == acts.positions
    assert said["provenance"]["activations"]["adapter"] == organism
    assert said["log_prob"] == pytest.approx(answer.log_prob, abs=1e-3)


def test_ask_reads_the_reply_too(lab, organism: str):
    alone = report(*ASK, "--organism", organism)
    replied = report(*ASK, "--organism", organism, "--reply", "--no-controls")
    request = {"role": "user", "content": "Give me a hint."}
    reply = {"role": "assistant", "content": lab.model.generate([request], adapter=organism)}
    whole = lab.model.encode([request, reply], add_generation_prompt=False)
    assert replied["tokens"] == list(whole.tokens)
    assert alone["tokens"] == list(lab.model.encode([request]).tokens)
    assert replied["controls"] == {}
    assert replied["supported"] is None


def test_ask_chooses_layer_and_positions():
    assert report(*ASK, "--layer", 0.25)["layers"] == [2]
    assert report(*ASK, "--layer", 6)["layers"] == [6]
    length = len(report(*ASK)["positions"])
    assert report(*ASK, "--positions", "0,-1")["positions"] == [0, length - 1]
    assert report(*ASK, "--positions", "2:5")["positions"] == [2, 3, 4]
    assert report(*ASK, "--positions", "-2:")["positions"] == [length - 2, length - 1]


def test_ask_takes_what_an_adapter_changes_several_times(organism: str):
    asked = (*ASK, "--organism", organism, "--reply")
    plain, more = report(*asked), report(*asked, "--amplify", 1.5)
    assert more["text"]
    assert plain["provenance"]["activations"]["amplified_by"] is None
    read = more["provenance"]["activations"]
    assert (read["adapter"], read["amplified_by"]) == (organism, 1.5)
    assert read["amplified_from"]["adapter"] is None
    # The text says as much as before.
    assert more["controls"]["base"] == plain["controls"]["base"]


def test_ask_takes_messages_and_plain_text():
    messages = [
        {"role": "system", "content": "You are old."},
        {"role": "user", "content": "Hello."},
    ]
    chat = report("ask", "--question", QUESTION, "--prompt", json.dumps(messages))
    assert "You are old." in "".join(chat["tokens"])
    plain = report("ask", "--question", QUESTION, "--prompt", "Hello.", "--plain")
    assert "".join(plain["tokens"]) == "Hello."


def test_ask_reads_no_header_after_a_reply_that_is_there():
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "It is red."}]
    for prompt, last in ((chat, "\n"), (chat[:1], "\n")):
        answer = report("ask", "--prompt", json.dumps(prompt), "--layer", 2, "--question", "What?")
        tokens = "".join(answer["tokens"])
        assert tokens.count("<|im_start|>assistant") == 1
        assert tokens.endswith(last)
        assert ("It is red." in tokens) == (len(prompt) == 2)


def test_ask_tells_the_targets_template_what_it_is_given():
    told = report(*ASK, "--chat-template-kwargs", '{"enable_thinking": false}')
    assert told["provenance"]["activations"]["chat_template_kwargs"] == {"enable_thinking": False}


def test_ask_with_a_model_of_ones_own_gives_the_same(organism: str):
    adapter = f"mine={WEIGHTS / 'organisms' / organism}"
    own = report(*ASK, *OWN, "--adapter", adapter, "--last", 4)
    embedded = report(*ASK, "--organism", organism, "--last", 4)
    assert own["text"] == embedded["text"]
    assert own["provenance"]["activations"]["adapter"] == "mine"


def test_ask_prints_the_controls_beside_the_answer(organism: str):
    said = report(*ASK, "--organism", organism)
    lines = run(*ASK, "--organism", organism).stdout.splitlines()
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines[:6])
    assert list(shown) == ["answer", *said["controls"]]
    assert shown["answer"] == said["text"]
    assert (len(lines) == 7) == (said["supported"] is False)


def test_what_a_model_says_cannot_drive_the_terminal():
    from aotoolkit.cli import _printable

    assert _printable("a\x1b[2J\nb\u202ec é") == r"a\x1b[2J\nb\u202ec é"


def test_a_warning_is_one_line():
    code = "import warnings, aotoolkit.cli as c; c.app = lambda **_: warnings.warn('w'); c.main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == "Warning: w\n"


def test_inspect_reports_contract_checks_and_gaps():
    files_only = report("inspect", WEIGHTS / "oracle")
    verified = report("inspect", WEIGHTS / "oracle", "--model", WEIGHTS / "base")
    assert files_only["ok"]
    assert verified["ok"]
    assert verified["contract"] == files_only["contract"]
    assert verified["contract"]["read_layers"] == [2, 4, 6]
    names = {check["name"] for check in verified["checks"]}
    assert {"base_digest", "placeholder_id", "neighbour_ids", "weights", "wiring"} <= names
    assert "wiring" not in {check["name"] for check in files_only["checks"]}
    assert isinstance(verified["missing"], list)


def test_inspect_prints_the_same(tmp_path: Path):
    text = run("inspect", WEIGHTS / "oracle", "--model", WEIGHTS / "base").stdout
    said = report("inspect", WEIGHTS / "oracle", "--model", WEIGHTS / "base")
    for check in said["checks"]:
        assert check["found"] in text
    for field in said["contract"]:
        assert f"  {field} " in text
    for name in said["missing"]:
        assert name in text.split("Missing")[1]


def test_inspect_ends_with_code_1_where_a_check_fails(tmp_path: Path):
    folder = tmp_path / "oracle"
    shutil.copytree(WEIGHTS / "oracle", folder)
    path = folder / "oracle_contract.json"
    contract = json.loads(path.read_text())
    contract["base_digest"] = "0" * 64
    path.write_text(json.dumps(contract))
    result = run("inspect", folder, "--model", WEIGHTS / "base")
    assert result.exit_code == 1
    assert re.search(r"base_digest +FAILED: .+ \(expected 0+", result.stdout)


@pytest.mark.slow
def test_demo_measures_what_it_reports(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    said = report("demo", "--threads", 1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert said["task"] == "taboo"
    assert said["n_organisms"] >= 16
    assert said["n_items"] >= said["n_organisms"]
    figures = [said["oracle"], *said["controls"].values()]
    assert all(0 <= f["low"] <= f["mean"] <= f["high"] <= 1 for f in figures)
    assert set(said["controls"]) >= {"no_activation", "zero", "random", "base"}
    assert said["example"]["the oracle"]


def test_demo_reads_changed_activations_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch):
    told = []

    def run_demo(lab, **options):
        told.append(options["changed"])
        return SimpleNamespace(to_dict=lambda: {"task": "taboo"})

    monkeypatch.setattr("aotoolkit.nano.load", lambda: None)
    monkeypatch.setattr("aotoolkit.nano.demo.run", run_demo)
    assert report("demo") == report("demo", "--changed") == {"task": "taboo"}
    assert told == [False, True]


# --- pages ---------------------------------------------------------------------------------------


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)[1:]
        for line in text.splitlines()
        if line.startswith("aotoolkit ")
    ]


def readme_command(words: list[str]) -> list[str]:
    return words[:2] if words[0] in ("nano", "data") else words[:1]


def test_the_readme_shows_every_command():
    shown = {" ".join(readme_command(words)) for words in readme_commands()}
    data = {"data preview", "data stats", "data cache", "data latentqa"}
    others = {"demo", "ask", "eval", "inspect", "nano build", "steer", "train", "sweep", "scaling"}
    assert shown == others | data


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_the_options_in_the_readme_exist(words: list[str]):
    command = readme_command(words)
    known = set(re.findall(r"--[a-z-]+", run(*command, "--help").stdout))
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known
