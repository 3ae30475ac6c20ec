"""Threads of our own that help with long kernels, where those of OpenMP cannot (:mod:`.team`).

Numba's parallel layers either abort when two Python threads use them at once, or die after a fork. RL programs do both.
Here the caller cuts its work into chunks and starts on them; helpers take chunks too, if and when they wake up. The
caller waits only for chunks that somebody has really taken, so a helper that is slow, busy with another caller's work,
or did not survive a fork costs nothing but its help.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue


class _Job:
    """``work(i)`` for every ``i`` below ``chunks``, by whoever comes."""

    def __init__(self, work: Callable[[int], object], chunks: int) -> None:
        self._work, self._chunks = work, chunks
        # Counters whose "next" is a single step of the interpreter, and so needs no lock.
        self._take, self._finish = itertools.count().__next__, itertools.count(1).__next__
        self._all_done = threading.Lock()
        self._all_done.acquire()
        self._error: BaseException | None = None

    def help(self) -> None:
        """Do chunks until none is left to be taken."""
        while (i := self._take()) < self._chunks:
            try:
                self._work(i)
            except BaseException as error:
                self._error = error
            if self._finish() == self._chunks:
                self._all_done.release()

    def wait(self) -> None:
        """Return when every chunk is done; raise what any of them raised."""
        self._all_done.acquire()
        if self._error is not None:
            raise self._error


class Pool:
    """Helper threads, started when they are first needed. They never keep the interpreter from exiting."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._helpers = 0
        self._growing = threading.Lock()

    def run(self, work: Callable[[int], object], chunks: int, threads: int) -> None:
        """Call ``work(i)`` for every ``i`` below ``chunks``, on this thread and up to ``threads - 1`` helpers."""
        job = _Job(work, chunks)
        helpers = min(threads, chunks) - 1
        if self._helpers < helpers:
            self._grow(helpers)
        for _ in range(helpers):
            self._jobs.put(job)
        job.help()
        job.wait()

    def _grow(self, helpers: int) -> None:
        with self._growing:
            while self._helpers < helpers:
                threading.Thread(target=self._serve, args=(self._jobs,), name="tritonrl", daemon=True).start()
                self._helpers += 1

    @staticmethod
    def _serve(jobs: SimpleQueue[_Job]) -> None:
        while True:
            # A reference kept while waiting would keep the tensors of the last job alive.
            jobs.get().help()


POOL = Pool()
# The child of a fork has none of the helpers, and may have inherited locks that nobody will release.
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=POOL._forget)
