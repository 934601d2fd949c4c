"""Files that are there whole or not at all.

A module of its own, below all others, because every part saves something, and `tempfile` would
leave files that only their owner may read.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what was written there becomes `path` at the end.

    After an error, and after a kill, `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(made: Path, target: Path) -> None:
    """Renames a finished folder to where another may be, which stays if that fails.

    Args:
        made: The folder; the one that it replaces is put beside it, for the caller to remove.
        target: Where it goes, on the same disk.
    """
    old = made.with_name("old")
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
