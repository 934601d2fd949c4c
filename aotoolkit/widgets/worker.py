"""One thread that does all of a panel's work with models, so that its callbacks never wait.

JupyterLab runs a widget's callbacks while a cell is still running, on whatever thread it likes. So
a callback only reads what is chosen and submits a job. A job that is submitted while another is
under way *replaces* it: the older one is told to stop, and the newer one waits for it to end. So of
two clicks on Ask the second counts, and what the first one read can never appear under the second
one's question. Jobs of different panels, and of cells, take turns by the model's own lock.

A job runs in the context (`contextvars`) of whoever submitted it. ipykernel answers a widget on the
shell that last wrote to it, by that context: so a button that a job has changed is heard while a
cell runs, and what a job prints stands where it was asked for.

The thread is a daemon: neither a closed panel nor the end of the kernel waits for a model.
"""

import atexit
import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable

Job = Callable[[threading.Event], object]

_SECONDS_FOR_THE_LAST_JOB = 2.0
_open: "weakref.WeakSet[ModelWorker]" = weakref.WeakSet()


class ModelWorker:
    """Runs the newest job on one thread; a job is given the event that tells it to stop.

    Attributes:
        name: Of the thread.
    """

    def __init__(
        self,
        name: str,
        *,
        on_error: Callable[[Exception], object],
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        """Starts no thread before the first job.

        Args:
            name: Of the thread.
            on_error: Called on the thread with what a job raised.
            on_idle: Called on the thread after a job, where no other waits.
        """
        self.name = name
        self._on_error = on_error
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._next: tuple[Job, threading.Event, contextvars.Context] | None = None
        self._stop: threading.Event | None = None  # of the job under way
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a job is under way or waits."""
        with self._changed:
            return self._next is not None or self._stop is not None

    def submit(self, job: Job) -> None:
        """Runs a job next; one that is under way is told to stop, one that waits is dropped.

        A closed worker runs nothing.
        """
        with self._changed:
            if self._closed:
                return
            if self._stop is not None:
                self._stop.set()
            self._next = (job, threading.Event(), contextvars.copy_context())
            if self._thread is None:
                self._start()
                _open.add(self)
            self._changed.notify_all()

    def stop(self) -> None:
        """Tells the job under way to stop, and drops one that waits."""
        with self._changed:
            self._next = None
            if self._stop is not None:
                self._stop.set()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until nothing is under way; False where that takes longer than `timeout` seconds.

        Interrupting the wait (the kernel's stop button) stops the job too.
        """
        assert threading.current_thread() is not self._thread, "a job cannot wait for itself"
        with self._changed:
            try:
                return self._changed.wait_for(
                    lambda: self._next is None and self._stop is None, timeout
                )
            except KeyboardInterrupt:
                self.stop()
                raise

    def close(self) -> None:
        """Stops what is under way and ends the thread; does not wait for it."""
        with self._changed:
            self._closed = True
            self.stop()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                if self._next is None:
                    return
                (job, stop, context), self._next = self._next, None
                self._stop = stop
            ended_well = False
            try:
                context.run(self._run, job, stop)
                ended_well = True
            finally:
                with self._changed:
                    self._stop = None
                    if not ended_well:  # such as an error of `on_error`: the next job has a thread
                        self._thread = None
                        if self._next is not None:
                            self._start()
                    self._changed.notify_all()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def _run(self, job: Job, stop: threading.Event) -> None:
        try:
            job(stop)
        except Exception as error:
            self._on_error(error)
        with self._changed:
            newest = self._next is None
        if newest:
            self._on_idle()


@atexit.register
def _close_all() -> None:
    """A thread inside torch while Python is taken down can crash it, so jobs are told to end."""
    workers = list(_open)
    for worker in workers:
        worker.close()
    for worker in workers:
        if worker._thread is not None:
            with contextlib.suppress(RuntimeError):  # this is the worker's own thread
                worker._thread.join(_SECONDS_FOR_THE_LAST_JOB)
