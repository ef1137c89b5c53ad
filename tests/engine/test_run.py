"""A run: tiled prediction, fallbacks, cancellation, and the record of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.stage import Cancelled, Params, Progress
from napari_medai.core.volume import from_array
from napari_medai.engine import streaming, weights
from napari_medai.engine.predict import first_pass
from napari_medai.engine.run import start
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec, Tiling


def model(**changes):
    fields = {
        "id": "phantom",
        "title": "Phantom",
        "summary": "For tests.",
        "stage": "segment",
        "accepts": Accepts(ndim=(2, 3)),
        "gives": Gives(kind="image"),
        "tiling": Tiling(multiple=1),
        "runner": "brain",
    }
    return Model(spec=ModelSpec(**{**fields, **changes}), folder=Path("nowhere"), source="test")


@dataclass
class Listener(Progress):
    """Keeps what it is told; stops the run after some updates."""

    stop_after: int | None = None
    updates: list[tuple[float, float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def update(self, done, total, message=""):
        self.updates.append((done, total, message))
        self.check()

    def note(self, message):
        self.notes.append(message)

    def check(self):
        if self.stop_after is not None and len(self.updates) >= self.stop_after:
            raise Cancelled


IMAGE = np.random.default_rng(1).normal(size=(1, 40, 56)).astype(np.float32)


@pytest.fixture
def begin():
    """A function that starts a run on the CPU; ended after the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def begin(progress=None, notes=(), params=None, **changes):
            volume = from_array(IMAGE[0])
            params = params or Params(device="cpu")
            return stack.enter_context(
                start("segment", volume, model(**changes), params, progress or Progress(), notes)
            )

        yield begin


def test_the_identity_gives_the_image_back_whatever_the_tile(begin):
    run = begin()
    for tile in [(64, 64), (16, 16), (17, 9)]:
        np.testing.assert_allclose(run.predict(IMAGE, nn.Identity(), tile=tile), IMAGE, atol=1e-6)
    assert run.tiles > 3


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_any_number_of_dimensions(begin, ndim):
    image = np.random.default_rng(ndim).normal(size=(2, *(19,) * ndim)).astype(np.float32)
    out = begin().predict(image, lambda x: torch.cat([x, 2 * x], dim=1), tile=(8,) * ndim)
    np.testing.assert_allclose(out, np.concatenate([image, 2 * image]), atol=1e-5)


def test_tiled_equals_untiled_for_a_bounded_receptive_field(begin):
    torch.manual_seed(0)
    # Two convolutions reach 2 voxels: within the margin of (16 - 8) // 4 voxels without weight
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    run = begin()
    whole = run.predict(IMAGE, network, tile=(64, 64))
    tiled = run.predict(IMAGE, network, tile=(16, 16), overlap=0.5)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_pooling_sees_every_tile_at_the_same_phase(begin):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(4), nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=4)
    )
    run = begin()
    image = IMAGE[:, :37, :53]  # no multiple of 4
    whole = run.predict(image, network, tile=(64, 64), multiple=4)
    # a block of 4 at a tile's edge saw padding: the margin is (32 - 16) // 4 = 4
    tiled = run.predict(image, network, tile=(32, 32), multiple=4, overlap=0.5)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_batches_change_nothing(begin):
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    run = begin()
    one = run.predict(IMAGE, network, tile=(16, 16))
    np.testing.assert_allclose(run.predict(IMAGE, network, tile=(16, 16), batch=5), one, atol=1e-6)


def test_progress_counts_tiles(begin):
    listener = Listener()
    begin(listener).predict(IMAGE, nn.Identity(), tile=(40, 28), overlap=0)
    assert listener.updates == [(1, 2, "tile 1 of 2"), (2, 2, "tile 2 of 2")]


def test_cancelling_takes_effect_within_one_tile(begin):
    calls = []

    def network(x):
        calls.append(len(x))
        return x

    with pytest.raises(Cancelled):
        begin(Listener(stop_after=2)).predict(IMAGE, network, tile=(8, 8))
    assert calls == [1, 1]


def test_cancelled_before_the_first_tile(begin):
    with pytest.raises(Cancelled):
        begin(Listener(stop_after=0)).predict(IMAGE, lambda x: pytest.fail("ran"), tile=(8, 8))


def test_the_output_of_a_pass_is_gone_before_the_next(begin):
    made, alive = [], []

    def network(x):
        alive.append(sum(reference() is not None for reference in made))
        out = 2 * x.numpy()
        made.append(weakref.ref(out))
        return torch.from_numpy(out)

    np.testing.assert_allclose(begin().predict(IMAGE, network, tile=(16, 16)), 2 * IMAGE, atol=1e-6)
    assert len(alive) > 4
    assert set(alive) == {0}


def test_a_single_tile_is_handed_over_as_it_is(begin):
    made, shared = [], []

    def network(x):
        made.append(2 * x)
        return made[-1]

    def take(first, scores):
        shared.append(np.shares_memory(scores, made[0].numpy()))
        np.testing.assert_array_equal(scores, 2 * IMAGE[:, first : first + scores.shape[1]])

    begin().stream(IMAGE, take, network, tile=(64, 64))
    assert shared == [True]


class Small(nn.Module):
    """Runs out of memory above a number of voxels; keeps the sizes that it was given."""

    def __init__(self, most, error=torch.OutOfMemoryError):
        super().__init__()
        self.most, self.error, self.seen = most, error, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        if x.numel() > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return 2 * x


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_takes_smaller_batches_then_smaller_tiles(begin, error):
    listener = Listener()
    run, network = begin(listener), Small(16 * 16, error)
    out = run.predict(IMAGE, network, tile=(32, 32), batch=2)
    np.testing.assert_allclose(out, 2 * IMAGE, atol=1e-5)
    assert listener.notes == run.notes
    assert run.notes == [
        "cpu ran out of memory: 1 instead of 2 tiles at once",
        "cpu ran out of memory: tiles of 16 x 32 instead of 32 x 32 voxels",
        "cpu ran out of memory: tiles of 16 x 16 instead of 16 x 32 voxels",
    ]
    assert run.provenance().notes == tuple(run.notes)


def test_after_lack_of_memory_it_goes_on_from_what_is_finished(begin):
    calls = []

    def network(x):
        calls.append(len(x))
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return x

    run, planes = begin(), []
    # 3 rows of 3 tiles of 16 x 20, four at once: one is measured, three more, four, and the last has no memory. Planes
    # before 24 are final then; what follows them needs the second and the third row
    run.stream(IMAGE, lambda first, scores: planes.append((first, scores.copy())), network, tile=(16, 20), overlap=0,
               batch=4)  # fmt: skip
    assert calls == [1, 3, 4, 1, 2, 2, 2]
    np.testing.assert_allclose(np.concatenate([scores for _, scores in planes], axis=1), IMAGE, atol=1e-6)
    assert [first for first, _ in planes] == sorted({first for first, _ in planes})


def test_no_memory_at_all_is_an_error_that_says_what_to_do(begin):
    with pytest.raises(DeviceError, match="not enough memory on the cpu for a tile of 8 x 8"):
        begin().predict(IMAGE, Small(0), tile=(16, 16))


def test_an_accelerator_without_memory_hands_over_to_the_cpu(begin, monkeypatch):
    run = begin()
    run.device, run.precision = torch.device("meta"), "float16 (autocast)"
    devices = []

    def full(rows, network, sweep, setting, observer):
        devices.append((setting.device.type, setting.tile, setting.batch, setting.sums, setting.keep))
        if setting.device.type != "cpu":
            raise torch.OutOfMemoryError("out of memory")
        return first_pass(rows, network, sweep, setting, observer)

    monkeypatch.setattr(streaming, "first_pass", full)
    out = run.predict(IMAGE, nn.Identity(), tile=(16, 16), batch=2)
    np.testing.assert_allclose(out, IMAGE, atol=1e-6)
    assert devices == [
        ("meta", (16, 16), 2, "float32", "device"),
        ("meta", (16, 16), 1, "float32", "device"),
        ("meta", (8, 16), 1, "float32", "device"),
        ("meta", (8, 8), 1, "float32", "device"),
        ("meta", (8, 8), 1, "float16", "device"),
        ("meta", (8, 8), 1, "float16", "host"),
        ("cpu", (16, 16), 1, "float32", "host"),
    ]
    record = run.provenance()
    assert record.device == "cpu"
    assert record.precision == "float32"
    assert record.notes[-1] == "meta ran out of memory: running on the CPU instead"


def test_a_network_that_does_not_fit_is_loaded_on_the_cpu(begin):
    run = begin()
    run.device = torch.device("meta")

    def loader(device):
        if device.type != "cpu":
            raise torch.OutOfMemoryError("out of memory")
        return nn.Identity()

    assert isinstance(run.load(loader), nn.Identity)
    assert run.device.type == "cpu"
    assert run.notes == ["meta has no memory for the network: running on the CPU instead"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x * float("nan"), "not finite"),
        (lambda x: x[..., ::2], r"made \(16, 8\) out of a tile of \(16, 16\)"),
        (lambda x: (x, x), "gave tuple"),
        (lambda x: x[:, 0], "one tensor"),
        (nn.Conv2d(3, 1, 1), "network failed on an input of"),
    ],
)
def test_wrong_output_is_a_clear_error(begin, network, message):
    with pytest.raises(ModelError, match=message):
        begin().predict(IMAGE, network, tile=(16, 16))


def test_another_number_of_channels_in_a_later_tile_is_an_error(begin):
    channels = iter([1, 2])
    with pytest.raises(ModelError, match="2 channels after 1"):
        begin().predict(IMAGE, lambda x: x.repeat(1, next(channels), 1, 1), tile=(16, 16))


def test_half_precision_that_overflows_is_repeated_in_float32(begin):
    run = begin()
    run.precision = "float16 (autocast)"
    weight = torch.full((1, 1, 1, 1), 1e4)

    def network(x):
        return torch.nn.functional.conv2d(x * 100, weight)

    out = run.predict(IMAGE, network, tile=(64, 64))
    np.testing.assert_allclose(out, IMAGE * 1e6, rtol=1e-4)
    assert run.precision == "float32"
    assert run.notes == ["half precision overflowed: running in float32 instead"]


def test_tile_and_batch_of_the_user_come_before_the_models(begin):
    network = Small(10**9)
    run = begin(params=Params(device="cpu", tile=20, batch=3), tiling=Tiling(size=(32, 32), multiple=1))
    run.predict(IMAGE, network)
    assert network.seen[:2] == [(1, 1, 20, 20), (2, 1, 20, 20)]  # the first tile is measured alone
    network = Small(10**9)
    begin(tiling=Tiling(size=(32, 24), multiple=8)).predict(IMAGE, network)
    assert network.seen[0] == (1, 1, 32, 24)


def test_tiles_of_another_number_of_axes_are_an_error(begin):
    with pytest.raises(ModelError, match="tiles of 3 axes; its input has 2"):
        begin(tiling=Tiling(size=(8, 8, 8))).predict(IMAGE, nn.Identity())


def test_the_record(begin):
    run = begin(notes=["modality unknown"], sha256="ab" * 32)
    run.predict(IMAGE, nn.Identity(), tile=(40, 28), overlap=0)
    run.note("again")
    run.note("again")
    record = run.provenance()
    assert (record.stage, record.model, record.model_sha256) == ("segment", "phantom", "ab" * 32)
    assert (record.inputs, record.device, record.precision, record.tiles) == (("image",), "cpu", "float32", 2)
    assert record.notes == ("modality unknown", "again")
    assert record.params == {"device": "cpu", "tile": 0, "batch": 0, "memory": 0, "override": False}
    assert record.versions["torch"] == version("torch")
    assert set(record.versions) == {"napari-medai", "torch", "monai", "numpy"}
    assert record.seconds > 0
    assert record.peak_memory_mb > 10


def test_lack_of_memory_outside_of_a_network_is_a_clear_error():
    with (
        pytest.raises(DeviceError, match="Memory ran out on the cpu during segment"),
        start("segment", from_array(IMAGE[0]), model(), Params(device="cpu"), Progress()),
    ):
        raise MemoryError


def test_a_device_that_disappears_is_a_clear_error():
    with (
        pytest.raises(DeviceError, match="stopped during segment: CUDA error: device lost"),
        start("segment", from_array(IMAGE[0]), model(), Params(device="cpu"), Progress()),
    ):
        raise torch.AcceleratorError("CUDA error: device lost\nfor debugging …")


def test_a_device_that_disappeared_gives_nothing_back_and_no_other_error(monkeypatch):
    """After such an error every call of CUDA fails, that which empties its cache too."""

    def lost(device):
        raise torch.AcceleratorError("CUDA error: device lost")

    monkeypatch.setattr("napari_medai.engine.run.release_memory", lost)
    weights.warm(("x", "cpu"), nn.Identity, torch.device("cpu"))
    with (
        pytest.raises(DeviceError, match="stopped during segment"),
        start("segment", from_array(IMAGE[0]), model(), Params(device="cpu"), Progress()),
    ):
        raise torch.AcceleratorError("CUDA error: device lost")
    made = nn.Identity()
    assert weights.warm(("x", "cpu"), lambda: made, torch.device("cpu")) is made  # the one that was lost is not kept
    weights.forget()


def test_an_unknown_runner_is_an_error(begin):
    with pytest.raises(ModelError, match=r"runner 'nobody'; there are: .*brain"):
        _ = begin(runner="nobody").runner


def test_the_runner_is_found_by_name(begin):
    assert callable(begin(runner="brain").runner)
