"""Sources give the same examples whatever PYTHONHASHSEED is."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import tiny

from aotoolkit.data import LayerChoice
from aotoolkit.data.classification import Classification, OpenClassification
from aotoolkit.data.latentqa import LatentQA, load_latentqa
from aotoolkit.data.split_qa import SplitItem, SplitQA
from aotoolkit.data.table import LabelledTexts


def digest(folder: Path) -> str:
    """Of the examples of every source in this module, and of what they say of themselves."""
    (folder / "qa.json").write_text(json.dumps({f"l{n}": [["q", "a"]] for n in range(9)}))
    (folder / "control.json").write_text(
        json.dumps([{"label": f"l{n}", "control_user": f"c{n}"} for n in range(9)])
    )
    texts = {f"t{n}": frozenset("abcd"[n % 4 : n % 3 + n % 4]) for n in range(40)}
    common = {"tokenizer": tiny.tokenizer(), "layers": LayerChoice((1, 2))}
    data = LabelledTexts(texts, "texts")
    items = [SplitItem(prefix=f"p{n % 5}", question=f"q{n}", answer="a") for n in range(9)]
    sources = [
        Classification(name="c", data=data, questions=["Is it {label}?"], **common),
        OpenClassification(name="o", data=data, questions=["What?", "Which?"], **common),
        LatentQA(name="l", data=load_latentqa(folder), **common),
        SplitQA(name="s", items=items, **common),
    ]
    made = [(list(source.groups(7)), json.dumps(source.describe())) for source in sources]
    return hashlib.sha256(repr(made).encode()).hexdigest()


def test_examples_do_not_depend_on_the_hash_seed(tmp_path):
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    tests = Path(__file__).parent
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]; "
        "import test_hash_seed; print(test_hash_seed.digest(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tests), str(tests.parent)],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(tmp_path)
