"""Work in a thread, which may wait for another process. Knows nothing of Qt: panels look at it, it never calls them.

The other way round (a signal per tile) floods the event loop of a window when tiles are fast, and reaches
widgets that are gone. Here the thread leaves its state behind, and whoever is interested looks at it as often
as the eye needs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from napari_medai.core.plan import Plan
from napari_medai.core.stage import Cancelled, Progress

T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """What a job looked like at one moment.

    Attributes
    ----------
    fraction : float or None
        Done so far, 0..1; none before the first word from the stage.
    message : str
        What it is doing.
    notes : tuple of str
        What it did in the user's place.
    seconds : float
        Wall time since the start; stands still once it is finished.
    cancelling : bool
        Whether it was told to stop.
    finished : bool
        Whether the thread is through, well or not.
    plan : Plan or None
        How a network goes over the image, once that is known.
    """

    fraction: float | None
    message: str
    notes: tuple[str, ...]
    seconds: float
    cancelling: bool
    finished: bool
    plan: Plan | None = None


class Job(Progress, Generic[T]):
    """A function of a `Progress`, run in a thread of its own as soon as it is made.

    Parameters
    ----------
    work : callable
        Called with the job itself, which is its `Progress`.
    name : str
        Name of the thread. Default ``"medai"``.

    Attributes
    ----------
    found : (array, int) or None
        Labels found so far, and how often more of them were found.
    """

    def __init__(self, work: Callable[[Job[T]], T], name: str = "medai") -> None:
        self._stop = threading.Event()
        self._told: tuple[float | None, str] = (None, "")  # replaced as a whole, hence safe to read from elsewhere
        self._notes: list[str] = []
        self._plan: Plan | None = None
        self.found: tuple[NDArray[Any], int] | None = None
        self._started = time.monotonic()
        self._ended: float | None = None
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._future: Future[T] = executor.submit(work, self)
        self._future.add_done_callback(self._end)
        executor.shutdown(wait=False)  # the thread goes away with its only task

    def _end(self, _: Future[T]) -> None:
        self._ended = time.monotonic()

    # what the thread says

    def update(self, done: float, total: float, message: str = "") -> None:
        """See `Progress.update`."""
        self.check()
        self._told = (min(max(done / total, 0.0), 1.0) if total else None, message or self._told[1])

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self._notes.append(message)

    def check(self) -> None:
        """See `Progress.check`."""
        if self._stop.is_set():
            raise Cancelled

    def planned(self, plan: Plan) -> None:
        """See `Progress.planned`."""
        self._plan = plan

    def partial(self, found: NDArray[Any], where: tuple[slice, ...]) -> None:
        """See `Progress.partial`."""
        self.found = (found, 1 if self.found is None else self.found[1] + 1)

    def begin(self) -> None:
        """Set the clock to zero: what came before was waiting."""
        self._started = time.monotonic()

    # what others ask

    @property
    def state(self) -> State:
        """How far it is now."""
        fraction, message = self._told
        seconds = (self._ended or time.monotonic()) - self._started
        return State(
            fraction, message, tuple(self._notes), seconds, self._stop.is_set(), self._future.done(), self._plan
        )

    def cancel(self) -> None:
        """Have it stop at its next check."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it came within ``timeout`` seconds."""
        return not wait([self._future], timeout).not_done

    def result(self) -> T:
        """What the work gave; waits for it.

        Raises
        ------
        BaseException
            What the work raised; `Cancelled` if it was stopped.
        """
        return self._future.result()

    @property
    def error(self) -> BaseException | None:
        """What the work raised, once it is finished."""
        return self._future.exception() if self._future.done() else None
