"""How a panel speaks through napari: its notifications and its activity dock."""

from __future__ import annotations

import time

from napari.utils import cancelable_progress
from napari.utils.notifications import ErrorNotification, notification_manager, show_error

from napari_medai.core.errors import MedaiError
from napari_medai.ui.job import State

_SECONDS_BETWEEN = 1.0


def report(error: BaseException) -> str:
    """Tell the user of an error; returns the line for the panel.

    What we raise on purpose is said in plain words. Anything else is a fault of the program: napari's
    notification offers its traceback.
    """
    if isinstance(error, MedaiError):
        show_error(str(error))
        return str(error)
    notification_manager.dispatch(ErrorNotification(error))
    return f"The run failed unexpectedly ({type(error).__name__}); the notification holds the traceback."


class Activity:
    """A bar in napari's activity dock.

    Parameters
    ----------
    title : str
        What is running.
    """

    def __init__(self, title: str) -> None:
        self._percent = 0
        self._next = 0.0
        self._bar: cancelable_progress | None = cancelable_progress(total=100, desc=title)

    def show(self, state: State) -> None:
        """Bring the bar up to date; once a second is enough, for each time napari draws."""
        percent = int(100 * (state.fraction or 0.0))
        if self._bar is not None and percent != self._percent and time.monotonic() > self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN
            step, self._percent = percent - self._percent, percent
            self._bar.update(step)

    @property
    def cancelled(self) -> bool:
        """Whether its cancel button was pressed."""
        return self._bar is not None and self._bar.is_canceled

    def close(self) -> None:
        """Take the bar away; more than once does no harm."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
