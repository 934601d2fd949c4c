import guessers
import pytest
import tiny_items

from aotoolkit.errors import DataError, EvalError
from aotoolkit.evals.tasks import Mention, Relation, RelationExtraction, read_relation

# As the published files are written: an index without a name, quotes around line breaks.
TSV = (
    "\tsample_id\tprompt_target\tobject\tsubject\tprompt_source\tposition_source\n"
    "0\t0\tThe currency of x\tDollar\tUnited States\t released in the United States on May 2\t4\n"
    '1\t0\tThe currency of x\tDollar\tUnited States\t" by United States Realty.\n"\t6\n'
    "2\t0\tThe currency of x\tDollar\tUnited States\t\t1\n"
    '3\t1\tThe currency of x\tPound\tUnited Kingdom\t" Kingdom ====\n"\t4\n'
    "4\t2\tThe currency of x\tYen\tJapan\t in a translated Japanese edition of Japan\t3\n"
    "5\t3\tThe currency of x\tdollar\tCanada\t in Canada\t3\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_items.target(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def relation(tmp_path):
    path = tmp_path / "country_currency.tsv"
    path.write_text(TSV, encoding="utf-8")
    return read_relation(path)


def test_file_of_the_patchscopes_form(relation):
    assert relation.name == "country_currency"
    assert relation.left_out == 1  # the row that lost half of its subject
    assert [mention.subject for mention in relation.mentions] == ["United States"] * 3 + [
        "Japan",
        "Canada",
    ]
    assert relation.mentions[1].text == " by United States Realty.\n"
    assert relation.mentions[2].text == "United States"


def test_the_subjects_last_token_is_read(model, relation):
    items = RelationExtraction(relation=relation, question="Which currency?", layers=2).items(model)

    for item, mention in zip(items, relation.mentions, strict=True):
        (span,) = item.activations.offsets
        end = mention.text.rindex(mention.subject) + len(mention.subject)
        assert span[0] < end <= span[1]
        assert len(item.activations) == 1
    assert {item.unit for item in items} == {"United States", "Japan", "Canada"}


def test_objects_match_whatever_their_case(model, relation):
    task = RelationExtraction(
        relation=relation, question="Which currency?", forced_choice=True, layers=2
    )
    item = task.items(model)[-1]
    say = lambda text: task.score(item, guessers.answers([item], guessers.constant(text))[0])  # noqa: E731

    assert item.answers == ("Dollar",)
    assert item.choices == ("Dollar", "Yen")
    assert [say(text) for text in ("the Canadian DOLLAR", "yen", "dollar or yen", "")] == [
        1,
        0,
        0,
        0,
    ]


def test_impossible_settings(relation):
    with pytest.raises(EvalError, match="last token"):
        RelationExtraction(relation=relation, question="?", positions=(-1,), layers=2)
    with pytest.raises(EvalError, match="does not mention"):
        Mention(subject="Anna", object="Paris", text="nobody")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("subject\tobject\nA\tB\n", "prompt_source"),
        ("subject\tobject\tprompt_source\n", "no row"),
        ("subject\tobject\tprompt_source\nA\tB\tnothing\n", "1 do not mention"),
        ("subject\tobject\tprompt_source\n\tB\tnothing\n", "Row 2"),
        ("", "no column"),
    ],
)
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "r.tsv"
    path.write_text(content)

    with pytest.raises(DataError, match=message):
        read_relation(path)


def test_a_relation_without_objects_in_common_has_its_own_chance(model):
    mentions = tuple(
        Mention(subject=s, object=o, text=s) for s, o in zip("ABC", "xxy", strict=True)
    )
    task = RelationExtraction(
        relation=Relation(name="r", mentions=mentions), question="?", layers=2
    )

    assert task.chance(task.items(model)) == pytest.approx(2 / 3)
