"""The one thread that writes the catalogue: it commits what waits together, and then answers.

A FULL commit costs the same for one batch as for ten, so all waiting jobs share one. Each runs in
a savepoint of its own: a job that fails takes only its own changes back. Nobody gets an answer
before the commit that holds his changes.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from concurrent.futures import Future

from .base import DamagedStoreError, StoreError, log
from .sqlite_store import StoreConnection, explain_sqlite_error, sqlite3

GROUP_JOBS = 64  # more would let the first one wait too long
GROUP_TIME_S = 0.25
IDLE_REST_S = 0.1
IDLE_PATIENCE_S = 2.0
WRITE_TIMEOUT_S = 120.0


class WriteJob:
    """`work(db)` and the future that gets its answer after the commit."""

    def __init__(self, work):
        self.work = work
        self.future: Future = Future()


class CatalogWriter:
    """Runs jobs one after the other on one connection. Call `start`, and `stop` at the end.

    `idle_work(db)` is called when nothing waits; it returns in how many seconds it wants to be
    called again, or None when there is nothing to do before the next job.
    `on_failure()` is called after every rollback: numbers that were not committed are forgotten.
    `on_damage(error)` is called when the file turns out not to be sound.
    """

    def __init__(self, store: StoreConnection, *, idle_work=None, on_failure=None, on_damage=None):
        self.store = store
        self.idle_work = idle_work
        self.on_failure = on_failure or (lambda: None)
        self.on_damage = on_damage or (lambda error: None)
        self.last_error: str | None = None  # of the last commit, None when it succeeded
        self.commits = 0
        self.committed_at = float("-inf")  # of the last commit, on the monotonic clock
        self._waiting: collections.deque = collections.deque()
        self._ready = threading.Condition()  # guards _waiting, _stopping and the two times
        self._stopping = False
        self._idle_at: float | None = 0.0  # when idle work is wanted, on the monotonic clock
        self._quiet_at = 0.0  # until then the last writer may have more to write
        self._thread = threading.Thread(target=self._loop, name="catalogue writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits and end. Later writes are refused."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, work) -> Future:
        """Queue `work(db)`; the future's result is what it returns, after the commit."""
        job = WriteJob(work)
        with self._ready:
            if self._stopping:
                raise StoreError("the catalogue is being closed")
            self._waiting.append(job)
            self._ready.notify_all()
        return job.future

    def run(self, work, on_queued=None, timeout_s: float = WRITE_TIMEOUT_S):
        """`submit`, call `on_queued()` if it is given, and wait for the answer."""
        future = self.submit(work)
        if on_queued is not None:
            on_queued()
        return future.result(timeout_s)

    # -- the thread ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            jobs = self._take()
            if jobs is None:
                return
            try:
                if jobs:
                    self._commit_group(jobs)
                else:
                    self._work_idly()
            except Exception:  # the worker loop's edge: the next jobs go on
                log.exception("the catalogue's writer failed")
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(StoreError("the catalogue could not be written"))

    def _take(self) -> list | None:
        """The waiting jobs; [] when there is time for idle work; None at the end."""
        with self._ready:
            while not self._waiting and not self._stopping:
                wait_s = self._idle_wait_s()
                if wait_s is not None and wait_s <= 0:
                    return []
                self._ready.wait(wait_s)
            if not self._waiting:
                return None
            self._quiet_at = time.monotonic() + IDLE_REST_S
            if self._idle_at is None:
                self._idle_at = self._quiet_at
            count = min(len(self._waiting), GROUP_JOBS)
            return [self._waiting.popleft() for _ in range(count)]

    def _idle_wait_s(self) -> float | None:
        """How long to wait for idle work; None if there is none. Between two batches of a busy
        agent is no idle time, as the next one would wait for a commit more; but some of it passes.
        """
        if self._idle_at is None:
            return None
        at = max(self._idle_at, min(self._quiet_at, self._idle_at + IDLE_PATIENCE_S))
        return at - time.monotonic()

    def _work_idly(self) -> None:
        again_s = None
        if self.idle_work is not None:
            try:
                with self.store.atomic() as db:
                    again_s = self.idle_work(db)
            except (StoreError, sqlite3.Error) as error:
                log.warning("%s", self._explained(error))
                self.on_failure()
        with self._ready:
            self._idle_at = None if again_s is None else time.monotonic() + again_s

    def _commit_group(self, jobs: list) -> None:
        """One transaction. When it is lost as a whole, each job is tried once in one of its own."""
        if len(jobs) == 1:
            self._commit_alone(jobs[0])
        elif not self._commit_trusting(jobs):
            self._commit_apart(jobs)

    def _commit_trusting(self, jobs: list) -> bool:
        """Without savepoints, for which SQLite copies every page. False when a job had an error of
        its own: nothing is stored then, and none is answered.
        """
        results: list = []
        try:
            with self.store.atomic() as db:
                started = time.monotonic()
                for job in jobs:
                    results.append((job.work(db), None))
                    if time.monotonic() - started > GROUP_TIME_S:
                        break
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._retry_alone(jobs, error)
            return True
        except Exception:  # told to the one who gave that job, by _commit_apart
            self.on_failure()
            return False
        self._note_commit()
        self._answer(jobs, results)
        self._put_back(jobs[len(results):])
        return True

    def _commit_apart(self, jobs: list) -> None:
        """Each in a savepoint: one that fails takes only its own changes back."""
        outcomes: list = []
        try:
            with self.store.atomic() as db:
                started = time.monotonic()
                for job in jobs:
                    outcomes.append(self._run_in_savepoint(db, job))
                    if time.monotonic() - started > GROUP_TIME_S:
                        break
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._retry_alone(jobs, error)
            return
        self._note_commit()
        self._answer(jobs, outcomes)
        self._put_back(jobs[len(outcomes):])

    def _run_in_savepoint(self, db, job: WriteJob) -> tuple:
        """(result, None) or (None, exception). Raises when the whole transaction is gone."""
        db.execute("SAVEPOINT job")
        try:
            result = job.work(db)
        except Exception as error:
            self.on_failure()
            if not db.in_transaction:  # a full disk or an I/O error ends all of it
                raise self._explained(error) if isinstance(
                    error, sqlite3.Error) else StoreError(str(error)) from error
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
            return None, self._explained(error)
        db.execute("RELEASE job")
        return result, None

    def _commit_alone(self, job: WriteJob) -> None:
        """A transaction of its own needs no savepoint, for which SQLite copies every page."""
        try:
            with self.store.atomic() as db:
                result = job.work(db)
        except (StoreError, sqlite3.Error) as error:
            self.on_failure()
            self._fail(job, error)
        except Exception as error:  # the job's own refusal: nothing is wrong with the catalogue
            self.on_failure()
            self._answer([job], [(None, error)])
        else:
            self._note_commit()
            self._answer([job], [(result, None)])

    def _note_commit(self) -> None:
        self.commits += 1
        self.last_error = None
        self.committed_at = time.monotonic()

    def _retry_alone(self, jobs: list, error: Exception) -> None:
        if len(jobs) == 1:
            self._fail(jobs[0], error)
            return
        for job in jobs:
            self._commit_alone(job)

    def _fail(self, job: WriteJob, error: Exception) -> None:
        error = self._explained(error)
        self.last_error = str(error)
        job.future.set_exception(error)

    def _explained(self, error: Exception) -> Exception:
        """SQLite's errors as ours; damage is told on."""
        if isinstance(error, sqlite3.DatabaseError):
            error = explain_sqlite_error(error, self.store.path)
        if isinstance(error, DamagedStoreError):
            self.on_damage(error)
        return error

    def _answer(self, jobs: list, outcomes: list) -> None:
        for job, (result, error) in zip(jobs, outcomes):
            with contextlib.suppress(Exception):  # whoever waited may have given up
                if error is None:
                    job.future.set_result(result)
                else:
                    job.future.set_exception(error)

    def _put_back(self, jobs: list) -> None:
        with self._ready:
            self._waiting.extendleft(reversed(jobs))
