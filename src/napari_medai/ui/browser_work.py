"""What the study browser does in threads: listing, thumbnails, identities, opening. Knows nothing of Qt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Part, Progress
from napari_medai.core.volume import Volume
from napari_medai.io.study import Identity, Listing, Study, StudySeries, identity, list_studies
from napari_medai.io.thumbnail import thumbnail
from napari_medai.ui.job import Job

JOIN_SECONDS = 10.0  # how long closing waits for the file that is just being read


@dataclass(frozen=True)
class Request:
    """A series to open, with the options of `napari_medai.open`."""

    series: StudySeries
    options: Mapping[str, Any] = field(default_factory=dict)


class Jobs:
    """The threads of a browser, and what they leave behind; outlives its widgets, so that their end can end them.

    Attributes
    ----------
    listing, opening, pictures, identities : Job or None
        Under way.
    opened : deque of Volume or MedaiError
        What was opened and is to be shown, in order.
    drawn : deque of (key, array or None)
        Thumbnails; None where one cannot be decoded.
    """

    def __init__(self) -> None:
        self.listing: Job[Listing] | None = None
        self.opening: Job[None] | None = None
        self.pictures: Job[None] | None = None
        self.identities: Job[dict[tuple[str, str], Identity]] | None = None
        self._dropped: list[Job[Any]] = []
        self.opened: deque[Volume | MedaiError] = deque()
        self.drawn: deque[tuple[tuple[str, str, int], NDArray[np.uint8] | None]] = deque()

    @property
    def busy(self) -> bool:
        """Whether any thread works, or left something to be shown."""
        return bool(self._all() or self.opened or self.drawn)

    def look(self, paths: Sequence[str]) -> None:
        """List what lies at some paths."""
        self.listing = Job(lambda progress: _listed(paths, progress), name="medai-study")

    def open(self, requests: Sequence[Request]) -> None:
        """Open series in order; see ``opened``."""
        self.opening = Job(lambda progress: _open(requests, self.opened, progress), name="medai-open")

    def draw(self, series: Sequence[StudySeries]) -> None:
        """Decode thumbnails; see ``drawn``."""
        self.pictures = Job(lambda progress: _draw(series, self.drawn, progress), name="medai-thumbnails")

    def identify(self, studies: Sequence[Study]) -> None:
        """Read who studies are of; an older question is dropped."""
        self.forget_identities()
        self.identities = Job(lambda progress: _identities(studies, progress), name="medai-identity")

    def forget_identities(self) -> None:
        """Drop a question for identities and its answer."""
        if self.identities is not None:
            self._drop([self.identities])
            self.identities = None

    def _all(self) -> list[Job[Any]]:
        every: tuple[Job[Any] | None, ...] = (self.listing, self.opening, self.pictures, self.identities)
        return [job for job in every if job is not None]

    def _drop(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            job.cancel()
        self._dropped = [job for job in (*self._dropped, *jobs) if not job.state.finished]

    def abandon(self) -> None:
        """Cancel everything without waiting; nothing of it is shown any more."""
        self._drop(self._all())
        self.listing = self.opening = self.pictures = self.identities = None
        self.opened, self.drawn = deque(), deque()  # a thread that still works keeps the old ones

    def stop(self, *_: Any) -> None:
        """Cancel everything and wait for the threads."""
        self.abandon()
        for job in self._dropped:
            job.join(JOIN_SECONDS)


def _listed(paths: Sequence[str], progress: Progress) -> Listing:
    found = Listing()
    for n, path in enumerate(paths):
        found = found.with_more(list_studies(path, Part(progress, n / len(paths), (n + 1) / len(paths))))
    return found


def _open(requests: Sequence[Request], opened: deque[Volume | MedaiError], progress: Progress) -> None:
    from napari_medai.io import open as open_image
    from napari_medai.ui.appearance import sampled

    for n, request in enumerate(requests):
        what = request.series
        progress.update(n, len(requests), f"Opening {n + 1} of {len(requests)}: {what.info.description or 'series'}")
        try:
            options = {"series_uid": what.series_uid} if what.series_uid else {}
            volume = open_image(what.path, **options, **request.options)
            if volume.is_lazy and "window" not in volume.meta and not volume.is_rgb:
                # the planes that the layer's contrast is taken from are decoded here, and kept, not by the window;
                # on this thread, since dask would leave one pool of threads behind for each that asks
                levels = volume.meta.get("levels", ())
                sampled(levels[-1] if levels else volume.array).compute(scheduler="synchronous")
        except MedaiError as error:
            progress.check()
            opened.append(error)
        else:
            progress.check()
            opened.append(volume)


def _draw(series: Sequence[StudySeries], drawn: deque[Any], progress: Progress) -> None:
    for one in series:
        progress.check()
        try:
            pixels: NDArray[np.uint8] | None = thumbnail(one.image)
        except MedaiError:
            pixels = None  # opening it says what is wrong
        drawn.append((one.key, pixels))


def _identities(studies: Sequence[Study], progress: Progress) -> dict[tuple[str, str], Identity]:
    found = {}
    for study in studies:
        progress.check()
        try:
            found[study.key] = identity(study.file)
        except MedaiError:
            continue  # stays a pseudonym
    return found
