"""Running a suite: what is answered, what is used again, and what stops a run."""

import json
import multiprocessing
import socket
from pathlib import Path

import pytest
import tiny_items
import tiny_suite
from tiny_suite import Guesser, HalfTold, NotApplicable, Planted, Told, run_in_process, suite

from aotoolkit.errors import BrokenRecordWarning, EvalError, EvalLeakError
from aotoolkit.evals import (
    ControlArm,
    LeakFindings,
    OracleArm,
    Suite,
    SuiteEntry,
    read_records,
    run_suite,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_items.target(tmp_path_factory.mktemp("target"))


def run(made: Suite, model, out: Path | None = None, **options):
    return run_suite(made, model, out=out, progress=False, **options)


def counted(arm: Told) -> int:
    return sum(map(len, arm._answered))


def test_the_told_score_one_and_the_guesser_scores_chance(model):
    arms = (Told(), Guesser("blind", "control"), Guesser(), Told("probe", "skyline"))
    result = run(suite(*arms), model)
    table = result.table
    told, guesser = table.row("planted", "oracle"), table.row("planted", "guesser")
    assert (told.mean, told.high, told.n, told.unit) == (1.0, 1.0, 6, "organism")
    assert told.low < 1
    assert guesser.mean == pytest.approx(guesser.chance) == pytest.approx(1 / 3)
    assert guesser.low < guesser.chance < guesser.high
    assert not told.void
    assert [row.kind for row in table.rows] == ["oracle", "control", "baseline", "skyline"]
    assert result.folder is None
    assert len(result.records) == 4 * 18
    record = result.records[0]
    assert (record.task, record.arm, record.item, record.correct) == ("planted", "oracle", "0/0", 1)
    assert "".join(record.tokens).endswith("<|im_start|>assistant\n")
    assert [record.tokens[i] for i in record.read] == list(record.tokens[-3:])


def test_an_oracle_and_its_controls_run(model):
    class Hints(Planted):
        def items(self, model):
            return tiny_items.items(model, 4, task=self.name)

    oracle = tiny_items.oracle(model)
    arms = [OracleArm(oracle, max_new_tokens=3)] + [
        ControlArm(oracle, name, max_new_tokens=3) for name in ("zero", "base", "other_unit")
    ]
    result = run(suite(*arms, task=Hints()), model)
    assert [row.arm for row in result.table.rows] == ["oracle", "zero", "base", "other_unit"]
    assert all(row.n == 2 and row.num_items == 4 for row in result.table.rows)


def test_what_is_written(model, tmp_path):
    result = run(suite(Told(), Guesser()), model, tmp_path / "out")
    assert result.folder == tmp_path / "out"
    assert {path.name for path in result.folder.iterdir()} == {"results.jsonl", "table.json"}
    assert tuple(read_records(result.folder / "results.jsonl")) == result.records
    stored = json.loads((result.folder / "table.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert len(stored["rows"]) == 2


def test_a_stopped_run_answers_only_what_is_missing(model, tmp_path):
    task = Planted(units=12)  # 36 items, in three calls
    whole = run(suite(Told(), Guesser(), task=task), model)
    dying, guesser = Told(), Guesser()
    dying._dies_in = 2
    with pytest.raises(KeyboardInterrupt):
        run(suite(dying, guesser, task=task), model, tmp_path)
    assert counted(dying) == 32
    told, guesser = Told(), Guesser()
    again = run(suite(told, guesser, task=task), model, tmp_path)
    assert counted(told) == 4
    assert counted(guesser) == 36
    assert again.records == whole.records
    assert again.table == whole.table
    told, guesser = Told(), Guesser()
    assert run(suite(told, guesser, task=task), model, tmp_path).records == whole.records
    assert counted(told) == counted(guesser) == 0


def test_a_cut_last_line_costs_that_line(model, tmp_path):
    first = run(suite(Told()), model, tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    told = Told()
    with pytest.warns(BrokenRecordWarning, match="line 18"):
        again = run(suite(told), model, tmp_path)
    assert counted(told) == 1
    assert again.records == first.records


def test_what_changed_is_answered_anew(model, tmp_path):
    run(suite(Told()), model, tmp_path)
    other = Told(version=2)
    run(suite(other), model, tmp_path)
    assert counted(other) == 18

    class Moved(Planted):
        def items(self, model):
            first, *rest = super().items(model)
            return [tiny_suite.plant(first, 1), *rest]

    told = Told()
    result = run(suite(told, task=Moved()), model, tmp_path)
    assert told._answered == [["0/0"]]
    assert result.records[0].answers == ("word",)
    # What the other versions answered is still there.
    told, other = Told(), Told(version=2)
    run(suite(told), model, tmp_path)
    run(suite(other), model, tmp_path)
    assert counted(told) == counted(other) == 0


def test_a_changed_score_is_applied_to_answers_that_are_known(model, tmp_path):
    class Never(Planted):
        def score(self, item, answer):
            return 0.0

    run(suite(Told()), model, tmp_path)
    told = Told()
    result = run(suite(told, task=Never()), model, tmp_path)
    assert counted(told) == 0
    assert result.table.row("planted", "oracle").mean == 0


def test_an_arm_that_needs_the_whole_task_gets_it(model, tmp_path):
    class Whole(Told):
        whole_task = True

    task, whole = Planted(units=12), Whole()
    run(suite(whole, task=task), model, tmp_path)
    assert [len(call) for call in whole._answered] == [36]
    fewer = Whole()
    run(suite(fewer, task=Planted(units=6)), model, tmp_path)
    assert [len(call) for call in fewer._answered] == [18]  # in other company


def test_an_arm_that_does_not_apply_is_left_out_and_said(model, tmp_path):
    task = Planted(units=12)
    arms = (Told(), *(NotApplicable(name, "baseline") for name in ("picky", "choosy")))
    result = run(suite(*arms, task=task), model, tmp_path)
    assert {record.arm for record in result.records} == {"oracle"}
    (note,) = [note for note in result.table.notes if "left out" in note]
    # One note for both, who have one reason.
    assert note == "planted: picky, choosy were left out. This arm knows the first items only."


def test_oracles_of_several_seeds_are_one_row(model):
    class Seeded(HalfTold):
        def __init__(self, seed, name="oracle"):
            super().__init__(name)
            self.oracle_seed = seed

    class Better(Seeded):
        _chosen = Told._chosen

    arms = (Seeded(0), Seeded(1), Better(2), Guesser())
    row = run(suite(*arms), model).table.row("planted", "oracle")
    assert (row.num_seeds, row.n) == (3, 6)
    assert row.mean == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert run(suite(*arms), model, seeds=[2]).table.row("planted", "oracle").mean == 1
    difference = run(suite(*arms), model).table.row("planted", "guesser").difference
    assert difference.num_seeds == 3
    with pytest.raises(EvalError, match="have the seeds 0, 1, 2"):
        run(suite(*arms), model, seeds=[7])
    with pytest.raises(EvalError, match=r"no oracle .* says which seed"):
        run(suite(Told(), Guesser()), model, seeds=[7])


def test_a_leak_stops_the_run_before_anything_is_answered(model, tmp_path):
    class Leaky:
        def find(self, model, read):
            assert [one.task.name for one in read] == ["planted"]
            return LeakFindings(leaks=("The answer is on the wall.",))

    told = Told()
    with pytest.raises(EvalLeakError, match="on the wall"):
        run(suite(told, leak_checks=(Leaky(),)), model, tmp_path / "out")
    assert told._answered == []
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_checked_is_a_note(model):
    class Unsure:
        def find(self, model, read):
            return LeakFindings(notes=("Nobody knows.",))

    result = run(suite(Told(), leak_checks=(Unsure(),), notes=("Tiny.",)), model)
    assert result.table.notes[:2] == ("Tiny.", "Nobody knows.")


def test_arms_can_be_made_of_the_items(model):
    def arms(items):
        return [Told(f"of {len(items)}")]

    entry = SuiteEntry(task=Planted(), arms=arms)
    result = run(Suite(name="made", entries=(entry,)), model)
    assert [row.arm for row in result.table.rows] == ["of 18"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Suite(name="none", entries=()), "no task"),
        (lambda: suite(), "no arm"),
        (lambda: suite(Told(), task=Planted(units=0)), "no item"),
        (lambda: suite(Told(), Told()), "several arms named 'oracle'"),
        (lambda: suite(Told(), Told(kind="skyline", name="oracle")), "oracle"),
        (lambda: suite(Told(), task=object()), "has no name, unit, metric"),
        (lambda: suite(Wrong()), "gave 1 answers"),
        (lambda: suite(Told(), task=Generous()), "score 2.0"),
        (lambda: suite(Told(), task=Misnamed()), "of another"),
        (lambda: Suite(name="twice", entries=(entry(), entry())), "several tasks named"),
    ],
)
def test_what_contradicts_itself_is_refused(model, make, message):
    with pytest.raises(EvalError, match=message):
        run(make(), model)


def entry():
    return SuiteEntry(task=Planted(), arms=(Told(),))


class Wrong(Told):
    def answer(self, items):
        return super().answer(items[:1])


class Generous(Planted):
    def score(self, item, answer):
        return 2.0


class Misnamed(Planted):
    def items(self, model):
        return tiny_items.items(model, 1, task="another")


# In processes of their own


def start(folder: Path, **options):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aotoolkit.evals", "transformers.models.qwen3"])
    process = context.Process(target=run_in_process, args=(str(folder),), kwargs=options)
    process.start()
    return process


def finish(process) -> int | None:
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def start_two(folder: Path, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    return [
        start(folder, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}, **options)
        for rank in ("0", "1")
    ]


def found(folder: Path):
    table = json.loads((folder / "out" / "table.json").read_text())
    del table["seconds"]
    assert {path.name for path in (folder / "out").iterdir()} == {"results.jsonl", "table.json"}
    return table, read_records(folder / "out" / "results.jsonl")


def test_two_processes_and_a_killed_one_give_the_table_of_one(tmp_path):
    one, two, broken = tmp_path / "one", tmp_path / "two", tmp_path / "broken"
    for folder in (one, two, broken):
        folder.mkdir()
    killed, *both = start(broken, killed=True), *start_two(two)
    run_in_process(str(one))
    assert finish(killed) == -9
    (left,) = (broken / "out").iterdir()
    assert left.read_text().endswith('{"task": "plan')
    with pytest.warns(BrokenRecordWarning, match="line 33"):
        run_in_process(str(broken))
    assert [finish(process) for process in both] == [0, 0]
    assert found(two) == found(one) == found(broken)
    calls = {path.parent.name + path.name: int(path.read_text()) for path in tmp_path.glob("*/c*")}
    assert calls == {"onecalls0": 288, "brokencalls0": 256, "twocalls0": 144, "twocalls1": 144}


def test_the_task_of_the_documentation_runs(model):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (source,) = [block for block in page.split("```python\n")[1:] if "class Colours" in block]
    names: dict = {}
    exec(compile(source.split("```")[0], "evaluation.md", "exec"), names)
    assert len([line for line in source.split("```")[0].splitlines() if line]) <= 30

    class Says(Told):
        def _chosen(self, item):
            return "white"

    row = run(suite(Says(), task=names["Colours"]()), model).table.row("colours", "oracle")
    assert (row.mean, row.chance, row.n) == pytest.approx((1 / 3, 1 / 3, 3))
