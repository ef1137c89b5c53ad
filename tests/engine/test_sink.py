"""Labels slab by slab: on the image whatever its axes, shown as they come, and gone on with after a killed run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import napari_medai as medai
from napari_medai.core.geometry import scaling
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.sink import LabelSink
from napari_medai.engine.zarr_store import RECORD, finished_in
from napari_medai.models import load, probe
from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare, Tiling


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three classes by brightness, at 1.5 mm: label 1 around 0, label 2 above 100, label 300 above 200."""
    folder = tmp_path_factory.mktemp("model")
    layers = [
        {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "dilation": 1},
        {"in_channels": 1, "out_channels": 3, "kernel_size": 1, "dilation": 1},
    ]
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 1] = 1
    save_file(
        {
            "convolutions.0.weight": kernel,
            "convolutions.0.bias": torch.zeros(1),
            "convolutions.1.weight": torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1),
            "convolutions.1.bias": torch.tensor([0.0, -100.0, -300.0]),
        },
        folder / "weights.safetensors",
    )
    spec = ModelSpec(
        id="classes",
        title="Classes",
        summary="For tests.",
        stage="segment",
        accepts=Accepts(ndim=(3,)),
        prepare=Prepare(normalise="none", spacing_mm=(1.5, 1.5, 1.5)),
        gives=Gives(kind="labels", labels=tuple(Label(value=v, name=str(v)) for v in (1, 2, 300))),
        tiling=Tiling(size=(8, 8, 8), multiple=1, halo=1, overlap=0.25),
        runner="network",
        network="meshnet",
        arguments={"layers": layers},
        weights="weights.safetensors",
    )
    write_manifest(spec, folder)
    return load(probe(folder))


def scan(turned: bool = False) -> Volume:
    rng = np.random.default_rng(3)
    image = rng.normal(150, 90, (22, 26, 24)).astype(np.float32)
    volume = Volume(image, "zyx", scaling((2, 1, 1.2)), units="mm")
    if turned:  # stored with other axes, two of them backwards
        from napari_medai.core.geometry import Reorientation

        volume = volume.reoriented(Reorientation((1, 2, 0), (True, False, True)))
    return volume


class Watching(Progress):
    """Keeps what it is shown; stops after so many slabs."""

    def __init__(self, stop: int = 10**6, store: Path | None = None) -> None:
        self.stop, self.store, self.seen, self.notes, self.plans = stop, store, [], [], []

    def partial(self, found, where):
        self.seen.append((where, np.array(found[where])))
        if len(self.seen) >= self.stop:
            raise Cancelled

    def note(self, message):
        self.notes.append(message)

    def planned(self, plan):
        self.plans.append(plan)


def test_the_same_labels_whatever_the_stored_axes(model):
    from napari_medai.core.geometry import Reorientation

    straight = medai.segment(scan(), model, device="cpu").labels
    turned = medai.segment(scan(turned=True), model, device="cpu").labels
    back = turned.reoriented(Reorientation((1, 2, 0), (True, False, True)).inverse())
    np.testing.assert_array_equal(back.numpy(), straight.numpy())
    assert straight.dtype == np.uint16
    assert set(np.unique(straight.numpy())) == {1, 2, 300}


def test_what_is_shown_on_the_way_is_what_comes_out(model):
    progress = Watching()
    volume = scan(turned=True)
    found = medai.segment(volume, model, progress=progress, device="cpu").labels.numpy()
    together = np.zeros_like(found)
    for where, labels in progress.seen:
        assert (together[where] == 0).all()  # nothing is shown twice
        together[where] = labels
    np.testing.assert_array_equal(together, found)
    assert len(progress.seen) > 2
    (plan,) = progress.plans
    assert (plan.tile, plan.channels, plan.fits) == ((8, 8, 8), 3, True)


def test_a_run_that_was_stopped_goes_on_from_what_is_finished(model, tmp_path):
    volume, store = scan(turned=True), tmp_path / "labels"
    whole = medai.segment(volume, model, device="cpu")
    first = Watching(stop=5, store=store)
    with pytest.raises(Cancelled):
        medai.segment(volume, model, progress=first, device="cpu")
    second = Watching(store=store)
    resumed = medai.segment(volume, model, progress=second, device="cpu")
    np.testing.assert_array_equal(resumed.labels.numpy(), whole.labels.numpy())
    assert any("earlier run had finished" in note for note in second.notes)
    assert resumed.provenance.tiles < whole.provenance.tiles
    third = Watching(store=store)
    again = medai.segment(volume, model, progress=third, device="cpu")
    assert again.provenance.tiles == 0
    np.testing.assert_array_equal(again.labels.numpy(), whole.labels.numpy())


def test_a_run_that_had_finished_nothing_is_begun_anew_in_words(model, tmp_path):
    class Early(Watching):
        def update(self, done, total, message=""):
            if (tmp_path / "labels" / RECORD).exists():
                raise Cancelled

    with pytest.raises(Cancelled):
        medai.segment(scan(), model, progress=Early(store=tmp_path / "labels"), device="cpu")
    assert finished_in(tmp_path / "labels") == 0
    second = Watching(store=tmp_path / "labels")
    medai.segment(scan(), model, progress=second, device="cpu")
    assert second.notes.count("an earlier run had finished nothing yet: it begins anew") == 1
    assert finished_in(tmp_path / "labels") == 22


def test_frames_of_a_series_do_not_go_on_from_each_other(model, tmp_path):
    first = scan()
    second = first.replace(array=400 - first.numpy())
    series = first.replace(array=np.stack([first.numpy(), second.numpy()]), axes="tzyx")
    found = medai.segment(series, model, progress=Watching(store=tmp_path / "labels"), device="cpu").labels.numpy()
    for frame, alone in zip(found, (first, second), strict=True):
        np.testing.assert_array_equal(frame, medai.segment(alone, model, device="cpu").labels.numpy())


def test_the_plan_of_a_series_counts_its_frames(model):
    one, frames = scan(), 3
    series = one.replace(array=np.stack([one.numpy()] * frames), axes="tzyx")
    progress = Watching()
    found = medai.segment(series, model, progress=progress, device="cpu")
    assert progress.plans[0].tiles == found.provenance.tiles == frames * medai.plan_stage("segment", one, model).tiles


def test_another_image_is_begun_anew(model, tmp_path):
    store = tmp_path / "labels"
    with pytest.raises(Cancelled):
        medai.segment(scan(), model, progress=Watching(stop=3, store=store), device="cpu")
    other = scan()
    other = other.replace(array=other.numpy() + 1)
    found = medai.segment(other, model, progress=Watching(store=store), device="cpu")
    np.testing.assert_array_equal(found.labels.numpy(), medai.segment(other, model, device="cpu").labels.numpy())


def test_another_description_of_the_same_weights_is_begun_anew(model, tmp_path):
    store = tmp_path / "labels"
    with pytest.raises(Cancelled):
        medai.segment(scan(), model, progress=Watching(stop=3, store=store), device="cpu")
    spec = model.spec.model_copy(update={"prepare": Prepare(normalise="none", spacing_mm=(1.4, 1.5, 1.5))})
    other, progress = model.model_copy(update={"spec": spec}), Watching(store=store)
    found = medai.segment(scan(), other, progress=progress, device="cpu")
    assert not any("earlier run" in note for note in progress.notes)
    np.testing.assert_array_equal(found.labels.numpy(), medai.segment(scan(), other, device="cpu").labels.numpy())


def test_labels_that_lie_in_a_folder_are_no_part_of_the_plan(model, tmp_path, monkeypatch):
    plain, kept = LabelSink.made, []

    def made(sink, channels):
        found = plain(sink, channels)
        kept.append(found.kept_mb)
        return found

    monkeypatch.setattr(LabelSink, "made", made)
    medai.segment(scan(), model, device="cpu")
    medai.segment(scan(), model, progress=Watching(store=tmp_path / "labels"), device="cpu")
    assert kept == [scan().numpy().size * 2 / 2**20, 0]


def test_little_memory_takes_lighter_ways_and_finds_the_same(model):
    volume, progress = scan(), Watching()
    plenty = medai.segment(volume, model, device="cpu").labels.numpy()
    import psutil

    held = psutil.Process().memory_info().rss / 2**20
    with pytest.raises(medai.MedaiError, match="does not fit into memory"):
        medai.segment(volume, model, progress=progress, device="cpu", memory=int(held / 2))
    assert "sums of tiles in a temporary file" in progress.notes[-1]
    assert not progress.plans[0].fits
    assert progress.plans[0].advice
    assert plenty.any()
