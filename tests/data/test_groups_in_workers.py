"""Groups are the same in any process, whatever PYTHONHASHSEED, threads and number of workers."""

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import tiny

from aotoolkit.data import Abstention, ContextPrediction, LayerChoice, TextSpec

WORKERS = 2


def source(folder):
    """Abstention over context prediction from plain texts and from chats."""
    predictions = tuple(
        ContextPrediction(
            name=name,
            texts=TextSpec(data=folder / name),
            tokenizer=tiny.tokenizer(),
            layers=LayerChoice((1, 2, 3), "one"),
            num_tokens=(1, 9),
            num_positions=((1, 1), (1, 9)),
        )
        for name in ("plain.txt", "chats.jsonl")
    )
    return Abstention(name="abstention", sources=predictions, share=0.4, kinds=("zero", "random"))


def described(groups):
    return [[asdict(example) for example in group] for group in groups]


def write_texts(folder):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["Anna", "water", "blue", "12"], k=60)) for _ in range(20)]
    (folder / "plain.txt").write_text("\n".join(texts[:10]))
    chats = [{"messages": [{"role": "user", "content": text}]} for text in texts[10:]]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))


def test_workers_that_take_turns_make_what_one_process_makes(tmp_path):
    write_texts(tmp_path)
    alone = described(source(tmp_path).groups(3))
    assert len(alone) == 20
    processes = []
    for worker in range(WORKERS):
        environment = os.environ | {
            "PYTHONHASHSEED": str(worker + 1),
            "TOKENIZERS_PARALLELISM": ("false", "true")[worker],
            "RAYON_NUM_THREADS": str(2 * worker + 1),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, str(tmp_path), str(worker)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    parts = [json.loads(process.communicate()[0]) for process in processes]
    together = [group for turn in itertools.zip_longest(*parts) for group in turn if group]
    assert together == json.loads(json.dumps(alone))


if __name__ == "__main__":
    folder, worker = Path(sys.argv[1]), int(sys.argv[2])
    groups = source(folder).groups(3)
    print(json.dumps(described(itertools.islice(groups, worker, None, WORKERS))))  # noqa: T201
