"""How the processes of a build use the machine: none of it changes what comes out.

A training step of these small models asks for the same few megabytes again and again. glibc gives
such blocks back to the system and has to fetch and clear them anew in the next step; and a worker
of a `multiprocessing.Pool` goes on with its training when the process that started it is killed.
"""

import ctypes
import multiprocessing
import os
import threading

# mallopt(3), of glibc alone.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_TOP_PAD = 2**28


def keep_freed_memory() -> None:
    """Has this process keep memory that it freed, for what it allocates next; with glibc alone."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no handle on the process
        return
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST_INT, _M_TOP_PAD: _TOP_PAD}
    for setting, value in settings.items():
        mallopt(setting, value)


def end_with_parent() -> None:
    """Ends this process, whatever it is doing, as soon as the one that started it is gone.

    Raises:
        RuntimeError: This process was not started by `multiprocessing`.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("This process has no parent of multiprocessing's to end with.")

    def watch() -> None:
        parent.join()
        # Not sys.exit, which would end this thread alone. Checkpoints are whole or not there.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
