"""What the processes of a build are told: tried in processes of their own."""

import multiprocessing
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aotoolkit.nano.workers import end_with_parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and resources of POSIX")

FAULTS = """
import resource, sys
import torch
from aotoolkit.nano.workers import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**23)  # 32 MB, more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
usual = faults()
keep_freed_memory()
faults()
print(usual, faults())
"""

ORPHAN = """
import multiprocessing, sys, time
from pathlib import Path
from aotoolkit.nano.workers import end_with_parent

def work(folder):
    Path(folder, "begun").touch()
    time.sleep({seconds})
    Path(folder, "ended").touch()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=end_with_parent) as pool:
        pool.map(work, [sys.argv[1]])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120
    )
    usual, kept = map(int, done.stdout.split())
    assert usual > 50 * 100
    assert kept < usual / 20


def test_a_worker_ends_when_the_process_that_started_it_is_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN.format(seconds=4))
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)]) as parent:
        _wait_for(tmp_path / "begun")
        parent.kill()
    time.sleep(6)
    assert not (tmp_path / "ended").exists()


def test_a_process_without_a_parent_is_refused():
    assert multiprocessing.parent_process() is None
    with pytest.raises(RuntimeError, match="no parent"):
        end_with_parent()


def _wait_for(path: Path, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)
