"""Scaling curves in the embedded world: what is varied, what is not, and that a run goes on."""

import json
import sys

import pytest
from typer.testing import CliRunner

from aotoolkit.cli import app
from aotoolkit.errors import RecipeError, RunMismatchError, TrainingSettingsError
from aotoolkit.evals.scaling import ScalingResult, ScalingRun
from aotoolkit.nano import scaling
from aotoolkit.nano.build import RECIPE
from aotoolkit.nano.scaling import BASE_DOCUMENTS, BASES, QUICK, SHIPPED, SIZES, BaseSize
from aotoolkit.oracle import OracleContract
from aotoolkit.training import load_recipe

SMALL = BaseSize(width=64, blocks=4)
TINY = {
    "sizes": (32, 64),
    "bases": (SMALL,),
    "base_documents": 64,
    "scored": 24,
    "transform_contexts": 32,
    "examine_bases": False,
    "progress": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scaling")


@pytest.fixture(scope="module")
def result(folder):
    return scaling.run(folder, **TINY)


def test_a_point_for_each_base_and_size(result, folder):
    assert [(p.base, p.examples) for p in result.points] == [("64x4", 32), ("64x4", 64)]
    assert ScalingResult.load(folder) == result
    runs = [ScalingRun.load(path) for path in sorted((folder / "runs").iterdir())]
    assert len(runs) == 2
    for run in runs:
        assert {score.scored for score in run.scores} == {"held_out", "word"}
        held_out = sum(score.scored == "held_out" for score in run.scores)
        assert held_out == pytest.approx(24, abs=5)
    # All are scored on the same, in the same order.
    keys = [[(score.scored, score.unit) for score in run.scores] for run in runs]
    assert keys[0] == keys[1]
    words = {score.unit for score in runs[0].scores if score.scored == "word"}
    world = scaling.load_world()
    assert words <= {f"The {noun}." for noun in world.validation_secrets}


def test_the_oracles_are_kept_and_of_their_base(result, folder):
    for size in (32, 64):
        oracle = folder / "oracles" / f"64x4-{size}-seed0" / "oracle"
        contract = OracleContract.read(oracle)
        assert contract.base_model == "aotoolkit/nano-64x4"
        # 2, 4, 6 of 8 blocks are 1, 2, 3 of 4.
        assert contract.read_layers == (1, 2, 3)
        assert sum(entry["examples"] for entry in contract.training_data) == size
        assert not list(oracle.parent.glob("checkpoint-*"))


def test_a_call_goes_on_and_takes_more_sizes_and_seeds(result, folder, monkeypatch):
    trained = []
    train = scaling._train_and_score

    def spy(recipe, where, **options):
        trained.append(where.name)
        return train(recipe, where, **options)

    monkeypatch.setattr(scaling, "_train_and_score", spy)
    assert scaling.run(folder, **TINY) == result
    assert not trained
    wider = scaling.run(folder, **(TINY | {"sizes": (32,), "seeds": (0, 1)}))
    assert trained == ["64x4-32-seed1"]
    assert wider.points[0].word.num_seeds == 2
    with pytest.raises(RunMismatchError, match=r"scored was 24, now 25"):
        scaling.run(folder, **(TINY | {"scored": 25}))


def test_what_other_calls_finished_is_in_the_file_from_the_first_point_on(
    folder, result, tmp_path, monkeypatch
):
    """The larger size is there; the call is stopped after the smaller one."""
    (tmp_path / "bases").symlink_to(folder / "bases", target_is_directory=True)
    (tmp_path / "runs").mkdir()
    name = "64x4-64-seed0.json"
    (tmp_path / "runs" / name).write_bytes((folder / "runs" / name).read_bytes())
    monkeypatch.setattr(scaling, "_train_and_score", None)
    with pytest.raises(TypeError):
        scaling.run(tmp_path, **(TINY | {"sizes": (64, 32)}))
    assert ScalingResult.load(tmp_path).points == result.points[1:]
    name = "64x4-32-seed0.json"
    (tmp_path / "runs" / name).write_bytes((folder / "runs" / name).read_bytes())
    with pytest.raises(TypeError):
        scaling.run(tmp_path, **(TINY | {"sizes": (32, 48, 64)}))
    assert ScalingResult.load(tmp_path).points == result.points


def test_a_run_that_was_stopped_goes_on(result, folder, tmp_path, monkeypatch):
    """A new folder with the base that is there; training stops after its checkpoint."""
    (tmp_path / "bases").symlink_to(folder / "bases", target_is_directory=True)
    monkeypatch.setattr(scaling, "_scores", None)  # what comes after training fails
    with pytest.raises(TypeError):
        scaling.run(tmp_path, **(TINY | {"sizes": (64,)}))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "scaling.json").exists()
    monkeypatch.undo()
    again = scaling.run(tmp_path, **(TINY | {"sizes": (64,)}))
    assert again.points[0] == result.points[1]


def test_the_dialect_can_be_the_other(folder, result, tmp_path):
    (tmp_path / "bases").symlink_to(folder / "bases", target_is_directory=True)
    other = scaling.run(tmp_path, **(TINY | {"sizes": (32,), "dialect": "latentqa"}))
    contract = OracleContract.read(tmp_path / "oracles" / "64x4-32-seed0" / "oracle")
    assert (contract.dialect, contract.formula, contract.position_ids) == (
        "latentqa",
        "replace",
        "shifted",
    )
    assert other.settings["dialect"] == "latentqa"
    assert other.points[0].word.n == result.points[0].word.n


def test_only_what_is_asked_for_differs_from_the_recipe():
    """The recipe that ships, at its own size on its own base, is the one that is run."""
    own = load_recipe(RECIPE)
    size = own.settings.data.num_examples - own.settings.data.held_out
    made = scaling._with_settings(
        own.with_base(scaling.WEIGHTS / "base"),
        base=SHIPPED,
        dialect=None,
        size=size,
        seed=0,
        scored=960,
        transform_contexts=None,
    )
    config, expected = made.training_config(), own.training_config()
    assert config.max_steps == expected.max_steps
    steps = expected.max_steps
    assert config.warmup_steps * steps == pytest.approx(expected.warmup_steps)
    for name in ("learning_rate", "lr_scheduler", "lora_rank", "batch_size", "num_epochs"):
        assert getattr(config, name) == getattr(expected, name)
    tokenizer, layers = own.tokenizer(), own.num_layers()
    assert (
        made.contract(tokenizer, layers).read_layers == own.contract(tokenizer, layers).read_layers
    )
    mixture = made.mixture(tokenizer, layers)
    assert [s.share for s in mixture.stages] == [
        s.share for s in own.mixture(tokenizer, layers).stages
    ]
    counts = {part.source.name: part.count for part in mixture.validation}
    assert sum(n for name, n in counts.items() if name.startswith("scored_")) == pytest.approx(
        960, abs=5
    )
    assert counts["held_out_secret"] == 960


def test_the_base_that_ships_is_not_trained_again(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "train_base", None)
    assert (
        scaling._base(tmp_path, SHIPPED, BASE_DOCUMENTS, examine=True) == scaling.WEIGHTS / "base"
    )
    with pytest.raises(TypeError):
        scaling._base(tmp_path, SHIPPED, BASE_DOCUMENTS - 1, examine=True)


def test_training_a_base_prints_nothing_into_a_report(monkeypatch, tmp_path, capsys):
    def printing(*_, **__):
        sys.stdout.write("{'train_loss': 1.0}")
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "train_base", printing)
    with pytest.raises(KeyboardInterrupt):
        scaling._base(tmp_path, SMALL, 64, examine=False)
    said = capsys.readouterr()
    assert not said.out
    assert "train_loss" in said.err


def test_defaults_are_five_sizes_and_three_bases():
    assert len(SIZES) == len(QUICK["sizes"]) == 5
    assert len(BASES) == 3
    assert SHIPPED in BASES


@pytest.mark.parametrize("text", ["", "128", "128x", "x8", "63x8", "96x8", "0x8", "128x3", "axb"])
def test_sizes_of_bases_that_are_none(text):
    with pytest.raises(TrainingSettingsError):
        BaseSize.of(text)
    assert str(BaseSize.of("128x8")) == "128x8"


def test_sizes_that_are_none(tmp_path):
    with pytest.raises(TrainingSettingsError, match="31 examples are less than one batch of 32"):
        scaling.run(tmp_path, **(TINY | {"sizes": (31,)}))
    with pytest.raises(TrainingSettingsError, match="at least one size"):
        scaling.run(tmp_path, **(TINY | {"seeds": ()}))
    assert not list(tmp_path.iterdir())


def test_recipes_about_something_else_are_refused(tmp_path):
    import recipe_files

    with pytest.raises(RecipeError, match="is of kind 'context_prediction'"):
        scaling.run(tmp_path / "out", **(TINY | {"recipe": recipe_files.write(tmp_path)}))
    text = RECIPE.read_text().replace("weights/base", str(scaling.WEIGHTS / "base"))
    start, end = text.index("  validation:"), text.index("  stages:")
    (tmp_path / "none.yaml").write_text(text[:start] + text[end:])
    with pytest.raises(RecipeError, match=r"data\.validation is empty"):
        scaling.run(tmp_path / "out", **(TINY | {"recipe": tmp_path / "none.yaml"}))


def test_the_command(result, folder, monkeypatch, tmp_path):
    asked = []

    def run(out, **options):
        asked.append(options)
        out.mkdir(exist_ok=True)
        return result

    monkeypatch.setattr(scaling, "run", run)
    command = ["scaling", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--quick", "--bases", "64x4,128x8", "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert json.loads(done.stdout)["points"] == result.to_dict()["points"]
    assert asked[0]["bases"] == [SMALL, SHIPPED]
    assert asked[0]["sizes"] == QUICK["sizes"]
    assert (tmp_path / "out" / "scaling.html").is_file()
    done = CliRunner().invoke(
        app, [*command, "--sizes", "32,64", "--seeds", "0,1", "--dialect", "latentqa"]
    )
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "64x4" in done.stdout
    assert asked[1] == {
        "sizes": [32, 64],
        "seeds": [0, 1],
        "dialect": "latentqa",
        "progress": True,
    }
    for wrong in (["--bases", "12"], ["--sizes", "a"], ["--dialect", "x"], ["--recipe", "none"]):
        monkeypatch.undo()
        done = CliRunner().invoke(app, [*command, *wrong])
        assert done.exit_code == 2, (wrong, done.stdout, done.exception)
        assert done.stderr


def test_what_a_recipe_includes_counts(tmp_path, monkeypatch):
    class NoBaseNeededError(Exception):
        pass

    def no_base(*_args, **_kwargs):
        raise NoBaseNeededError

    monkeypatch.setattr(scaling, "_base", no_base)
    for name in ("nano.yaml", "nano_latentqa.yaml"):
        (tmp_path / name).write_text((RECIPE.parent / name).read_text())
    recipe = tmp_path / "nano_latentqa.yaml"
    settings = {**TINY, "sizes": (32,)}
    for _ in range(2):  # the same again is no other recipe
        with pytest.raises(NoBaseNeededError):
            scaling.run(tmp_path / "out", recipe=recipe, **settings)
    included = tmp_path / "nano.yaml"
    included.write_text(included.read_text().replace("warmup_steps: 100", "warmup_steps: 50"))
    with pytest.raises(RunMismatchError, match="recipe_digest"):
        scaling.run(tmp_path / "out", recipe=recipe, **settings)
