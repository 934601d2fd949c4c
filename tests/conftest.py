"""What every test may ask for. The suite runs offline: what reaches for the Hub fails."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models run fastest on one thread, and give the same bits on any machine size.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

ROOT = Path(__file__).parents[1]

# The machine may be busy: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=50)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def one_thread():
    """What a test sets torch's threads to is not left to the next: on a busy machine two threads of
    so small a model wait for each other, and take fifteen times as long."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference outputs and public data, which do not ship with the package."""
    folder = Path(os.environ.get("AOTOOLKIT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set AOTOOLKIT_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def lab():
    """The embedded models, loaded once."""
    from aotoolkit import nano  # torch is heavy, and most tests do without

    return nano.load()
