"""The embedded models, loaded once."""

import pytest

from aotoolkit import nano


@pytest.fixture(scope="session")
def lab():
    return nano.load()
