import guessers
import pytest
import tiny_items

from aotoolkit.errors import EvalError
from aotoolkit.evals.tasks import SecretSideConstraint, read_lines

CONSTRAINTS = ("be kind", "be very kind", "use few words")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize(
    ("text", "exact", "shared"),
    [
        ("Be kind.", 1.0, 1.0),
        ("It says: be kind", 1.0, 2 * 2 / (4 + 2)),
        ("be very kind", 0.0, 2 * 2 / (3 + 2)),
        ("kind", 0.0, 2 * 1 / (1 + 2)),
        ("", 0.0, 0.0),
    ],
)
def test_exact_and_token_f1(model, text, exact, shared):
    task = SecretSideConstraint(organisms={"red": CONSTRAINTS}, prompts=["Hi"], layers=2)
    item = task.items(model)[0]
    (answer,) = guessers.answers([item], guessers.constant(text))

    assert task.score(item, answer) == exact
    assert task.secondary_score("token F1", item, answer) == pytest.approx(shared)
    assert item.unit == "be kind"


def test_template_and_cipher_are_written_as_they_are():
    task = SecretSideConstraint(
        organisms={"red": CONSTRAINTS},
        prompts=["{cipher} {prompt} {0}"],
        template="{cipher}|{prompt}",
        cipher=lambda text: text[::-1] + "{prompt}",
        layers=2,
    )

    assert task.specs()[0].prompt[0]["content"] == "dnik eb{prompt}|{cipher} {prompt} {0}"


def test_forced_choice_is_asked_for():
    task = SecretSideConstraint(
        organisms={"red": CONSTRAINTS}, prompts=["Hi"], forced_choice=True, layers=2
    )

    assert task.specs()[0].choices == CONSTRAINTS
    assert task.secondary == ("token F1", "forced choice")


def test_impossible_settings():
    with pytest.raises(EvalError, match="two or more"):
        SecretSideConstraint(organisms={"red": ["one"]}, prompts=["Hi"], layers=2)
    with pytest.raises(EvalError, match="template"):
        SecretSideConstraint(
            organisms={"red": CONSTRAINTS}, prompts=["Hi"], template="{prompt}", layers=2
        )


def test_published_files(shared):
    folder = shared / "data" / "activation_oracles" / "ssc"
    constraints = read_lines(folder / "ssc_test_constraints.txt")

    task = SecretSideConstraint(
        organisms={"red": constraints}, prompts=read_lines(folder / "ssc_direct_test.txt"), layers=2
    )

    assert len(constraints) == 20
    assert len(task.specs()) == 400
    assert len({spec.unit for spec in task.specs()}) == 20
