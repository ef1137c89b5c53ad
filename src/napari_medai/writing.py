"""Results into files, where the format allows it while they are found: a run that was ended goes on from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from napari_medai.core.result import Mask, Result
from napari_medai.core.volume import Volume
from napari_medai.io import find_writer, save


def place_for(stage: str, volume: Volume, target: str | os.PathLike[str]) -> Path | None:
    """The folder into which a run writes labels as it finds them; `napari_medai.core.stage.Progress.store`.

    Parameters
    ----------
    stage : str
        Name of the stage.
    volume : Volume
        What is run on; the frames of a series are written at the end.
    target : path
        Where the result is to lie.

    Returns
    -------
    Path or None
        Beside an OME-Zarr, the same for each run to this target; None where a format is written at the end.

    Raises
    ------
    WriteError
        The target's name does not say how to write it.
    """
    path = Path(target).expanduser()
    if stage != "segment" or "t" in volume.axes or find_writer(path).name != "omezarr":
        return None
    return path.with_name(f".{path.name}.part")


def save_result(
    result: Result,
    target: str | os.PathLike[str],
    place: Path | None = None,
    *,
    check: bool = True,
    against: Any = None,
) -> Path:
    """Write a result; the labels that a run has put into ``place`` become the file themselves.

    Parameters
    ----------
    result : Result
        What the run gave.
    target : path
        See `napari_medai.save`.
    place : Path, optional
        See `place_for`; it is gone afterwards.
    check, against
        See `napari_medai.save`.

    Raises
    ------
    WriteError
        As `napari_medai.save`; what lies in ``place`` stays there.
    """
    path = Path(target).expanduser()
    if place is None:
        return save(result, path, check=check, against=against)
    from napari_medai.engine.zarr_store import discard, folder_of, forget

    if isinstance(result, Mask) and folder_of(result.labels.array) == place.absolute():
        from napari_medai.io.omezarr_write import adopt
        from napari_medai.io.results import image_of, verified

        volume, record = image_of(result)
        with verified(result, check):
            adopt(place, volume, path, record)
        forget(path)
        return path
    save(result, path, check=check, against=against)
    discard(place)
    return path
