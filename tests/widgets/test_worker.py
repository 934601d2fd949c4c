"""The one thread of a panel: order, stopping, errors, closing. No model."""

import contextvars
import signal
import subprocess
import sys
import threading
import time

import pytest

from aotoolkit.widgets.worker import ModelWorker

SOON = 5.0


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def worker(errors):
    made = ModelWorker("test-worker", on_error=errors.append)
    yield made
    made.close()


def endless(started: threading.Event, ended: list[str], name: str = "endless"):
    """A job that runs until it is told to stop."""

    def job(stop: threading.Event) -> None:
        started.set()
        assert stop.wait(SOON), "was never told to stop"
        ended.append(name)

    return job


def test_jobs_run_on_one_thread_that_is_not_the_callers(worker):
    threads = []
    for _ in range(3):
        worker.submit(lambda _: threads.append(threading.current_thread().name))
        assert worker.wait(SOON)
    assert threads == ["test-worker"] * 3
    assert not worker.busy


def test_the_second_of_two_jobs_replaces_the_first(worker):
    started, order = threading.Event(), []
    worker.submit(endless(started, order, "first, stopped"))
    assert started.wait(SOON)
    worker.submit(lambda _: order.append("second"))
    assert worker.wait(SOON)
    assert order == ["first, stopped", "second"], "the second began before the first had ended"


def test_of_many_waiting_jobs_the_newest_runs(worker):
    started, order = threading.Event(), []
    worker.submit(endless(started, order))
    assert started.wait(SOON)
    for number in range(5):
        worker.submit(lambda stop, number=number: order.append((number, stop.is_set())))
    assert worker.wait(SOON)
    assert order == ["endless", (4, False)], "a fresh job begins with a fresh flag"


def test_submitting_does_not_wait_for_the_job_under_way(worker):
    release = threading.Event()
    started = threading.Event()

    def deaf(_stop):  # such as a model in the middle of a forward
        started.set()
        release.wait(SOON)

    worker.submit(deaf)
    assert started.wait(SOON)
    begun = time.perf_counter()
    worker.submit(lambda _: None)
    worker.stop()
    assert time.perf_counter() - begun < 1.0
    assert worker.busy
    assert not worker.wait(0.05)
    release.set()
    assert worker.wait(SOON)


def test_a_job_runs_in_the_context_of_whoever_submitted_it(worker):
    """ipykernel tells by it where output goes, and which shell hears a widget."""
    asker = contextvars.ContextVar("asker", default="nobody")
    found = []
    for name in ("first", "second"):
        asker.set(name)
        worker.submit(lambda _: found.append(asker.get()))
        assert worker.wait(SOON)
    assert found == ["first", "second"]


def test_an_error_is_reported_and_the_next_job_runs(worker, errors):
    def fail(_stop):
        raise ValueError("broken")

    worker.submit(fail)
    assert worker.wait(SOON)
    done = []
    worker.submit(lambda _: done.append(1))
    assert worker.wait(SOON)
    assert done == [1]
    assert [repr(error) for error in errors] == ["ValueError('broken')"]


def test_an_error_of_what_listens_does_not_end_the_worker(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda told: said.append(str(told.exc_value)))

    def deaf(error: Exception) -> None:
        raise RuntimeError("nobody is there to be told") from error

    worker = ModelWorker("test-deaf", on_error=deaf)
    started, release, done = threading.Event(), threading.Event(), []

    def fail(_stop):
        started.set()
        release.wait(SOON)
        raise ValueError("broken")

    worker.submit(fail)
    assert started.wait(SOON)
    worker.submit(lambda _: done.append("waited"))
    release.set()
    assert worker.wait(SOON), "the job that waited is never run"
    worker.submit(fail)
    assert worker.wait(SOON)
    worker.submit(lambda _: done.append("next"))
    assert worker.wait(SOON), "no thread is left"
    assert done == ["waited", "next"]
    assert set(said) == {"nobody is there to be told"}, "the error is lost"
    worker.close()


def test_idle_is_told_once_all_is_done():
    events: list[str] = []
    worker = ModelWorker(
        "test-idle",
        on_error=lambda _: events.append("error"),
        on_idle=lambda: events.append("idle"),
    )
    started = threading.Event()
    worker.submit(endless(started, events))
    assert started.wait(SOON)
    worker.submit(lambda _: events.append("second"))
    assert worker.wait(SOON)
    worker.close()
    assert events == ["endless", "second", "idle"], "idle between two jobs would make Ask flicker"


def test_closing_stops_the_job_and_ends_the_thread(worker):
    started, ended = threading.Event(), []
    worker.submit(endless(started, ended))
    assert started.wait(SOON)
    worker.close()
    assert worker.wait(SOON)
    assert ended == ["endless"]
    for _ in range(100):
        if not [t for t in threading.enumerate() if t.name == "test-worker"]:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the thread outlives its panel")
    worker.submit(lambda _: ended.append("after closing"))
    assert worker.wait(SOON)
    assert ended == ["endless"]


def test_an_interrupt_of_a_waiting_cell_stops_the_job(worker):
    started, ended = threading.Event(), []
    worker.submit(endless(started, ended))
    assert started.wait(SOON)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert worker.wait(SOON)
    assert ended == ["endless"]


def test_python_ends_while_a_job_is_under_way():
    program = (
        "import time\n"
        "from aotoolkit.widgets.worker import ModelWorker\n"
        "worker = ModelWorker('w', on_error=print)\n"
        "worker.submit(lambda stop: time.sleep(60))\n"
        "time.sleep(0.1)\n"
        "print('end')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "end\n"), ended.stderr
