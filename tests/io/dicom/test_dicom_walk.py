"""Every file that ships in pydicom and pydicom-data opens, pixels and all, or says why not."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom.data
import pytest

from napari_medai.core.errors import MedaiError, SeriesChoiceError
from napari_medai.core.volume import Volume
from napari_medai.io import dicom

# Enough to touch each decoder; a film of 120 frames alone would take longer than all the others.
MOST_PLANES = 4


def files() -> list[Path]:
    return sorted(Path(p) for p in pydicom.data.get_testdata_files() if Path(p).is_file())


def check(volume: Volume) -> None:
    leading = volume.shape[: len(volume.shape) - 2 - volume.is_rgb]
    assert np.isfinite(volume.affine).all()
    assert volume.array.shape == volume.shape
    if int(np.prod(leading)) > MOST_PLANES:
        volume = volume.replace(array=volume.array[-MOST_PLANES:])
    computed = volume.numpy()
    assert computed.shape == volume.shape
    assert computed.dtype == volume.dtype


@pytest.mark.slow
def test_every_file_opens_or_says_why_not(tmp_path: Path) -> None:
    start = time.perf_counter()
    outcomes: Counter[str] = Counter()
    for n, path in enumerate(files()):
        # alone, so that the file itself is read and not the whole series of its neighbours each time
        where = path
        if path.name != "DICOMDIR" and not path.name.startswith("DICOMDIR-"):
            where = tmp_path / str(n) / path.name
            where.parent.mkdir()
            shutil.copy(path, where)
        try:
            check(dicom.open_volume(where))
            outcomes["opened"] += 1
        except SeriesChoiceError as choice:
            for series in choice.series:
                check(dicom.open_volume(where, series.uid))
            outcomes["opened"] += 1
        except MedaiError as error:
            outcomes[type(error).__name__] += 1
    print(dict(outcomes), f"{time.perf_counter() - start:.1f} s")
    assert outcomes["opened"] >= 150


def test_files_in_their_folders_open_too() -> None:
    """The series of neighbours, for one file of each folder."""
    seen: set[Path] = set()
    for path in files():
        if path.parent in seen or path.stat().st_size > 500_000:
            continue
        try:
            check(dicom.open_volume(path))
        except MedaiError:
            continue
        seen.add(path.parent)
    assert len(seen) > 10
