"""Networks that misbehave, and places that cannot be written to: a clear error, memory given back, nothing harmed.

Each is a package on disk that is opened and run as any other.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import napari_medai as medai
from napari_medai import nets
from napari_medai.core.errors import DeviceError, MedaiError, ModelError, WriteError
from napari_medai.core.result import Mask
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.sweep import Sweep
from napari_medai.engine.tiling import plan_tiles
from napari_medai.engine.weights import forget
from napari_medai.models.spec import Model, Tiling
from tests.engine import sick
from tests.engine.test_network import package

SHAPE = (40, 36, 30)
SCAN = Volume(np.random.default_rng(2).normal(size=SHAPE).astype(np.float32), "zyx", np.eye(4), units="mm")
EXPECTED = np.where(SCAN.numpy() > 0, 7, 0)
SICK = ("Well", "NotANumber", "AlwaysNotANumber", "MoreChannels", "Smaller", "Gone", "NoMemory", "Fixed")


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in SICK:
        monkeypatch.setitem(nets.NETWORKS, name, f"tests.engine.sick:{name}")
        monkeypatch.setitem(nets.ARGUMENTS, name, "")
    sick.SEEN.clear()
    yield
    forget()


def model_of(folder: Path, name: str, **tiling: object) -> Model:
    given = {"size": (16, 16, 16), "multiple": 1, "overlap": 0.25, **tiling}
    state = {"bias": torch.zeros(1)}
    return package(folder, state, network=name, arguments={}, tiling=Tiling(**given))


@dataclass
class Parts(Progress):
    """Keeps a copy of the labels that it was shown."""

    seen: list[tuple[tuple[slice, ...], np.ndarray]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def partial(self, found, where):
        self.seen.append((where, np.array(found[where])))

    def note(self, message):
        self.notes.append(message)


@dataclass
class Earlier:
    """A result of before, in memory and as a file."""

    mask: Mask
    file: Path
    content: bytes

    def assert_intact(self) -> None:
        np.testing.assert_array_equal(self.mask.labels.numpy(), EXPECTED)
        assert self.file.read_bytes() == self.content


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    mask = medai.segment(SCAN, model_of(tmp_path / "well", "Well"), device="cpu")
    file = tmp_path / "earlier.nii.gz"
    medai.save(mask, file)
    return Earlier(mask, file, file.read_bytes())


def refused(model: Model, error: type[MedaiError], message: str, scan: Volume = SCAN) -> None:
    """Running it ends with this error; nothing of it is left in memory once the error is forgotten."""
    sick.SEEN.clear()
    with pytest.raises(error, match=message) as caught:
        medai.segment(scan, model, device="cpu")
    assert "tests" not in str(caught.value)
    del caught
    assert sick.alive() == 0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("NotANumber", ModelError, "values that are not finite; its weights or its input do not fit it"),
        ("AlwaysNotANumber", ModelError, "values that are not finite"),
        ("MoreChannels", ModelError, "gave 3 channels after 2 in the tile before"),
        ("Smaller", ModelError, r"made \(14, 14, 14\) out of a tile of \(16, 16, 16\); they must agree"),
        (
            "Gone",
            DeviceError,
            r"stopped during segment: CUDA error: an illegal memory access .*[Cc]hoose another device",
        ),
        ("NoMemory", DeviceError, "not enough memory on the cpu for a tile of .* voxels; close other programs"),
    ],
)
def test_what_a_network_does_wrong_is_said(
    tmp_path: Path, earlier: Earlier, name: str, error: type[MedaiError], message: str
) -> None:
    refused(model_of(tmp_path / "sick", name), error, message)
    earlier.assert_intact()
    again = medai.segment(SCAN, model_of(tmp_path / "well again", "Well"), device="cpu")
    np.testing.assert_array_equal(again.labels.numpy(), EXPECTED)


@pytest.mark.parametrize("name", ["NotANumber", "MoreChannels", "Gone"])
def test_what_was_shown_before_it_went_wrong_stays_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(getattr(sick, name), "after", 20)  # out of 3 x 3 x 3 tiles
    parts = Parts()
    with pytest.raises(MedaiError):
        medai.segment(SCAN, model_of(tmp_path / "sick", name), device="cpu", progress=parts)
    assert parts.seen
    for where, labels in parts.seen:
        np.testing.assert_array_equal(labels, EXPECTED[where])


@pytest.mark.parametrize(("halo", "edge", "works"), [(8, 16, False), (7, 16, True), (20, 40, True)])
def test_a_network_that_reaches_across_its_tiles(tmp_path: Path, halo: int, edge: int, works: bool) -> None:
    model = model_of(tmp_path / "far", "Well", size=(edge,) * 3, halo=halo)
    if works:  # also where one tile holds the whole image
        found = medai.segment(SCAN, model, device="cpu")
        np.testing.assert_array_equal(found.labels.numpy(), EXPECTED)
    else:
        refused(
            model, ModelError, "looks 8 voxels far to each side; in tiles of 16 voxels .* Use tiles of more than 16"
        )


def test_a_fixed_size_larger_than_the_image(tmp_path: Path) -> None:
    small = SCAN.replace(array=SCAN.numpy()[:7, :22, :20])
    found = medai.segment(small, model_of(tmp_path / "a", "Fixed", size=(24,) * 3, multiple=24), device="cpu")
    np.testing.assert_array_equal(found.labels.numpy(), EXPECTED[:7, :22, :20])
    refused(
        model_of(tmp_path / "b", "Fixed", size=(16,) * 3, multiple=8), ModelError,
        r"network failed on an input of \(1, 1, \d+, 16, 16\): expected 24 voxels, got", small,
    )  # fmt: skip


def test_a_run_that_failed_gives_its_memory_back(tmp_path: Path) -> None:
    from benchmarks.memory import resident_mb

    pixels = np.random.default_rng(0).normal(size=(120, 128, 128)).astype(np.float32)
    volume = Volume(pixels, "zyx", np.eye(4), units="mm")
    model = model_of(tmp_path / "sick", "MoreChannels", size=(64,) * 3)
    held = []
    for _ in range(6):
        with pytest.raises(ModelError):
            medai.segment(volume, model, device="cpu")
        gc.collect()
        held.append(resident_mb())
    # three runs that kept their image or their sums would be at 24 MB and more
    assert held[-1] - held[2] < 2 * pixels.nbytes / 2**20


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Writing more into any file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_disk_that_is_full_under_a_run(tmp_path: Path, earlier: Earlier) -> None:
    pixels = np.random.default_rng(2).normal(size=(40, 90, 80)).astype(np.float32)
    pixels[:12] = 1  # what is one label takes no room
    volume = Volume(pixels, "zyx", np.eye(4), units="mm")
    model, progress = model_of(tmp_path / "well", "Well", size=(16, 48, 48)), Parts()
    progress.store = tmp_path / "labels"
    sick.SEEN.clear()
    with no_file_beyond(2500), pytest.raises(WriteError, match="Nothing was finished") as caught:
        medai.segment(volume, model, device="cpu", progress=progress)
    del caught
    earlier.assert_intact()
    # zarr's own thread keeps its last error, and by that a tile, until it is asked for something else
    assert sick.alive() <= 2
    found = medai.segment(volume, model, device="cpu", progress=progress)
    np.testing.assert_array_equal(found.labels.numpy(), np.where(pixels > 0, 7, 0))
    assert sick.alive() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_sums_on_a_disk_have_their_room_before_they_are_written() -> None:
    sweep = Sweep(plan_tiles((64, 64), (32, 32)), lambda first, scores: None, keep="disk")
    with no_file_beyond(2500), pytest.raises(WriteError, match=r"The sums of tiles take .* than the system allows"):
        sweep.add((0, 0), torch.zeros(2, 32, 32))
