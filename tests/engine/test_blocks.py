"""Slides block by block: the same objects, numbers and tables as of the whole image, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from benchmarks.slide import fields, make_dicom, make_tiff, make_zarr
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume, from_array
from napari_medai.engine import nuclei
from napari_medai.engine.blocks import Blocks
from napari_medai.engine.instances import Decoding, decode_part
from napari_medai.engine.peaks import PeakRows, find_peaks
from napari_medai.engine.resample import resample
from napari_medai.engine.slide import SlideRows, survey
from napari_medai.engine.store import MemoryStore, ZarrStore
from napari_medai.models import load_model
from napari_medai.samples import sample

HOW = Decoding(0.5, 0.4, 0.4, 40)


def run_of(volume, progress=None, stage="segment"):
    from napari_medai.engine.run import start
    from napari_medai.stages import STAGES

    model = load_model({"segment": "nuclei", "detect": "micronuclei"}[stage])
    return start(stage, volume, model, STAGES[stage].params(), progress or Progress())


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    """What the network makes of a real slide, twice, the second time upside down: nuclei meet at the seam."""
    image = np.asarray(sample("micronuclei_slide").array, np.float32)
    volume = from_array(image, modality="fluorescence")
    with run_of(volume) as run:
        found = run.predict(np.asarray(nuclei.at_object_size(image, run, 0.0)[0]))
    return np.concatenate([found, found[:, ::-1]], axis=1)


def by_blocks(maps, shape, block, margin, step=97, store=None, note=lambda text: None, tell=lambda labels, where: None):
    store = store or MemoryStore(shape, np.int32)
    blocks = Blocks(shape, maps.shape[1:], HOW, store, margin, block, tell, note)
    for first in range(blocks.begin, maps.shape[1], step):
        blocks.take(first, maps[:, first : first + step])
    blocks.close()
    return np.asarray(store.array)


def whole(maps, shape):
    return decode_part(*resample(maps, shape), HOW).labels


@pytest.mark.parametrize(("block", "margin"), [((256, 512), 120), ((331, 417), 64)])
def test_real_nuclei_are_those_of_the_whole_image(maps, block, margin) -> None:
    shape = (1536, 869)
    expected = whole(maps, shape)
    assert expected.max() > 300
    np.testing.assert_array_equal(by_blocks(maps, shape, block, margin), expected)


def cones(shape, places) -> np.ndarray:
    """Foreground and depth of discs (y, x, radius), not quite even: whose a pixel half way is would be open."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    depth = np.zeros(shape, np.float32)
    uneven = np.random.default_rng(0).random(shape, np.float32) * 0.02
    for row, column, radius in places:
        depth = np.maximum(depth, np.clip(1 - np.hypot(y - row, x - column) / radius, 0, 1))
    return np.stack([depth > 0, depth + uneven]).astype(np.float32)


def test_an_object_on_the_corner_of_four_blocks_is_one() -> None:
    maps = cones((200, 200), [(100, 100, 25)])
    found = by_blocks(maps, (200, 200), (100, 100), 40)
    assert found.max() == 1
    np.testing.assert_array_equal(found, whole(maps, (200, 200)))


def test_touching_objects_across_every_border() -> None:
    # hexagonal packing: every disc touches six others, so that all of them are one piece of foreground
    places = [(12 + 21 * n, 12 + 24 * m + 12 * (n % 2), 12.9) for n in range(18) for m in range(15)]
    maps = cones((400, 390), places)
    expected = whole(maps, (400, 390))
    assert expected.max() == len(places)
    for block in ((100, 100), (64, 390), (33, 71)):
        np.testing.assert_array_equal(by_blocks(maps, (400, 390), block, 40), expected)


def test_an_object_larger_than_the_margin_is_whole() -> None:
    notes: list[str] = []
    maps = cones((420, 400), [(200, 190, 90), (40, 350, 20), (390, 30, 20)])
    for block in ((64, 64), (100, 400)):
        found = by_blocks(maps, (420, 400), block, 48, note=notes.append)
        np.testing.assert_array_equal(found, whole(maps, (420, 400)))
    assert notes == []


def test_an_object_too_large_for_any_margin_is_told() -> None:
    notes: list[str] = []
    by_blocks(cones((600, 60), [(300, 30, 280)]), (600, 60), (32, 60), 12, note=notes.append)
    assert "larger than 48 pixels may be cut" in notes[0]


@pytest.mark.parametrize(
    "values",
    [
        lambda x: (x * 4000).astype(np.uint16),
        lambda x: x - 0.5,
        lambda x: (x * 50).astype(np.int16) - 20,
        lambda x: np.where(x < 0.5, -0.0, x),
    ],
)
def test_grey_levels_of_an_image_that_is_read_in_rows(values) -> None:
    image = values(np.random.default_rng(0).random((300, 170), np.float32))
    lazy = da.from_array(image, chunks=(70, 60)).astype(np.float32)
    found = survey(SlideRows(lazy), 1.0, 99.8, diameter=10.0)
    assert (found.low, found.high) == tuple(np.percentile(image.astype(np.float32), (1.0, 99.8)))


def test_rows_are_read_once_and_few_are_kept() -> None:
    read: list[int] = []

    class Counted:
        shape, chunks = (1000, 40), ((300, 300, 300, 100), (40,))

        def __getitem__(self, key):
            read.append(key.start)
            return np.full((min(key.stop, 1000) - key.start, 40), key.start // 300, np.uint8)

    rows = SlideRows(Counted())
    for start in range(0, 900, 100):
        part = rows[slice(0, 1), slice(start, start + 150), slice(3, 30)]
        assert part.shape == (1, min(150, 1000 - start), 27)
        assert part.max() == (start + 149) // 300
    assert read == [0, 300, 600, 900]


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_an_image_that_is_rescaled_as_it_is_read(scale) -> None:
    image = np.asarray(sample("micronuclei_slide").array)[:300, :200]
    volume = from_array(da.from_array(image, chunks=64), modality="fluorescence")
    with run_of(volume) as run:
        seen, found = nuclei.at_object_size(volume.array, run, 24.0 / scale)
    assert found == pytest.approx(scale)
    low, high = np.percentile(image.astype(np.float32), (1.0, 99.8))
    expected = resample((image[None] - np.float32(low)) / np.float32(high - low), seen.shape[1:])
    assert seen.shape[1:] == (round(300 * scale), round(200 * scale))
    np.testing.assert_allclose(seen[slice(None), slice(40, 130), slice(3, 77)], expected[:, 40:130, 3:77], atol=1e-6)


def test_the_diameter_of_a_long_image_is_not_that_of_its_thinned_copy() -> None:
    # at a sixth of its size, as all of it would be thinned, the discs are two pixels wide and none is found
    y, x = np.mgrid[:64, :6000]
    image = np.where(np.hypot(y % 32 - 16, x % 32 - 16) <= 6, 1000, 10).astype(np.uint16)
    assert survey(SlideRows(image), 1.0, 99.8).diameter == pytest.approx(12, rel=0.15)


def test_peaks_of_a_heatmap_in_rows() -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((200, 60), np.float32)
    heat[50:53, 10:13] = 2.0  # a flat top
    sizes = rng.uniform(2, 9, (2, 200, 60)).astype(np.float32)
    centres, scores = find_peaks(heat, 0.7, 0.0)
    expected = sorted(zip(centres.tolist(), sizes[:, *centres.T].T.tolist(), scores, strict=True))
    for step in (1, 2, 7, 200):
        rows = PeakRows(0.7, heat.shape)
        for first in range(0, 200, step):
            rows.take(first, np.stack([heat, *sizes])[:, first : first + step])
        assert sorted(zip(*(found.tolist() for found in rows.result()), strict=True)) == expected


_KILLED = """
import os, signal, sys
import numpy as np
from napari_medai.engine.blocks import Blocks
from napari_medai.engine.instances import Decoding
from napari_medai.engine.store import ZarrStore
maps, folder = np.load(sys.argv[1]), sys.argv[2]
shape, seen = maps.shape[1:], []
def tell(labels, where):
    seen.append(where)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # written, and not said to be finished
store = ZarrStore(folder, shape, np.int32, {"run": "1"}, chunks=(32, 64))
blocks = Blocks(shape, shape, Decoding(0.5, 0.4, 0.4, 40), store, 40, (64, 100), tell)
blocks.take(0, maps)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal that cannot be caught")
def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    places = [(14 + 21 * n, 14 + 24 * m + 12 * (n % 2), 12.9) for n in range(18) for m in range(10)]
    maps = cones((400, 260), places)
    np.save(tmp_path / "maps.npy", maps)
    folder = tmp_path / "labels.zarr"
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "maps.npy"), str(folder)], check=False)
    assert ended.returncode == -9
    store = ZarrStore(folder, (400, 260), np.int32, {"run": "1"}, chunks=(32, 64))
    assert store.finished == 128
    bands: list[tuple[slice, ...]] = []
    found = by_blocks(maps, (400, 260), (64, 100), 40, store=store, tell=lambda labels, where: bands.append(where))
    assert 0 < len(bands) < 6  # of seven
    np.testing.assert_array_equal(found, whole(maps, (400, 260)))


def test_the_slide_of_the_benchmark_is_the_same_by_rows() -> None:
    made = fields(1800, tissue=0.4)
    whole = made[:]
    assert whole.shape == made.shape == (1800, 1800)
    np.testing.assert_array_equal(np.concatenate([made[n : n + 700] for n in range(0, 1800, 700)]), whole)
    # of 3 x 3 cells, the last of which are cut off, four are tissue
    lit = made.share(slice(0, 1800), slice(0, 1800))
    assert 0.3 < lit < 0.6
    assert 0.8 * lit < np.count_nonzero(whole) / whole.size <= lit
    noisy = fields(1800, tissue=0.0, noise=5.0)[:]
    assert noisy.std() == pytest.approx(5, rel=0.05)


def test_three_kinds_of_file_have_the_same_nuclei(tmp_path: Path) -> None:
    import napari_medai as medai

    pixels = np.asarray(sample("micronuclei_slide").array)[200:560, 300:700]
    paths = [tmp_path / name for name in ("a.ome.tif", "a.ome.zarr", "full", "sparse")]
    make_tiff(paths[0], pixels, 64)
    make_zarr(paths[1], pixels, levels=2)
    make_dicom(paths[2], pixels, 64)
    make_dicom(paths[3], pixels, 64, sparse=True)
    masks = []
    for path in paths:
        volume = medai.open(path)
        assert volume.is_lazy
        assert volume.spacing[1:] == pytest.approx((0.5, 0.5))
        if path != paths[3]:
            masks.append(medai.segment(volume.replace(modality="fluorescence"), "nuclei"))
        else:
            np.testing.assert_array_equal(volume.numpy(), pixels)
    assert masks[0].labels.numpy().max() > 20
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask.labels.numpy(), masks[0].labels.numpy())
        np.testing.assert_array_equal(mask.table["count"], masks[0].table["count"])
    # and the same as of an image in memory
    again = medai.segment(from_array(pixels, modality="fluorescence"), "nuclei")
    np.testing.assert_array_equal(again.labels.numpy(), masks[0].labels.numpy())


def on_glass() -> Volume:
    """Real nuclei in the corner of a slide that is camera noise for the rest."""
    field = np.asarray(sample("micronuclei_slide").array)[200:440, 300:540]
    noise = np.random.default_rng(0).normal(field.min(), 8, (640, 640)).round()
    noise[:240, :240] = field
    return from_array(noise.astype(np.uint16), modality="fluorescence")


def told_of_ground(name: str, empty: float | None):
    model = load_model(name)
    tiling = model.spec.tiling.model_copy(update={"empty": empty})
    return model.model_copy(update={"spec": model.spec.model_copy(update={"tiling": tiling})})


def test_windows_of_noise_are_left_out_and_the_nuclei_are_the_same() -> None:
    import napari_medai as medai

    every, some, wrong = (
        medai.segment(on_glass(), told_of_ground("nuclei", empty), diameter=34, tile=128)
        for empty in (None, load_model("nuclei").spec.tiling.empty, 5.0)
    )
    assert every.labels.numpy().max() > 10
    np.testing.assert_array_equal(some.labels.numpy(), every.labels.numpy())
    assert some.provenance.tiles < 0.8 * every.provenance.tiles
    # where the card calls nuclei background it is found out
    np.testing.assert_array_equal(wrong.labels.numpy(), every.labels.numpy())
    assert any("not all background" in note for note in wrong.provenance.notes)


def test_windows_of_noise_are_left_out_and_the_micronuclei_are_the_same() -> None:
    import napari_medai as medai

    every, some = (
        medai.detect(on_glass(), told_of_ground("micronuclei", empty), diameter=34, tile=128)
        for empty in (None, load_model("micronuclei").spec.tiling.empty)
    )
    assert len(every.scores) > 5
    np.testing.assert_array_equal(some.centres, every.centres)
    np.testing.assert_array_equal(some.sizes, every.sizes)
    np.testing.assert_array_equal(some.scores, every.scores)
    assert some.provenance.tiles < 0.8 * every.provenance.tiles


def test_cancelled_between_tiles() -> None:
    class Stop(Progress):
        left = 2

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise Cancelled

    image = np.asarray(sample("micronuclei_slide").array, np.float32)[:200, :200]
    volume = from_array(image, modality="fluorescence")
    with pytest.raises(Cancelled), run_of(volume, Stop()) as run:
        nuclei.segment_nuclei(volume, run, run.params)


_BOUNDED = """
import json
import dask.array as da
import numpy as np
import napari_medai as medai
from benchmarks.memory import watched
from napari_medai.samples import sample
field = np.asarray(sample("micronuclei_slide").array)[:400, :400]
small = medai.core.volume.from_array(field[:96, :96], modality="fluorescence")
medai.segment(small, "nuclei", diameter=30)  # what torch takes by itself is not asked for
def part(block_info=None):
    (y, _), (x, _) = block_info[None]["array-location"]
    made = np.zeros((1024, 1024), np.uint16)
    if (y, x) == (2048, 3072):
        made[300:700, 300:700] = field
    return made
array = da.map_blocks(part, chunks=((1024,) * 6, (1024,) * 6), dtype=np.uint16)
volume = medai.core.volume.from_array(array, modality="fluorescence")
with watched() as region:
    mask = medai.segment(volume, "nuclei", diameter=48)
print(json.dumps([len(mask.table["label"]), region.increase_mb]))
"""


def test_a_slide_of_38_megapixels_in_bounded_memory() -> None:
    import json

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED], check=True, capture_output=True, text=True, cwd=root, env=dict(os.environ)
    )
    count, increase = json.loads(done.stdout.splitlines()[-1])
    assert count >= 10
    # held as a whole, its maps and what decodes them take 60 bytes a pixel, 2.3 GB
    assert increase < 600
