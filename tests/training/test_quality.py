import numpy as np
import pytest
import torch

from napari_medai.models.manifest import read_manifest
from napari_medai.nets.quality import QualityNet
from training import quality, quality_draw, quality_figures
from training.defects import DEFECTS
from training.fitting import load_weights
from training.quality_data import Source, nifti, nrrd, phantom


@pytest.fixture(scope="module")
def phantoms():
    rng = np.random.default_rng(0)
    return [phantom(rng, size=64, slices=4) for _ in range(3)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(quality, "SLICES_PER_STEP", 4)
    monkeypatch.setattr(quality, "WARM_UP_SLICES", 16)
    monkeypatch.setattr(quality, "WARM_UP_ROUNDS", 2)
    monkeypatch.setattr(quality, "LENGTHS", (1, 2))
    monkeypatch.setattr(quality, "LENGTH_SHARES", (0.5, 0.5))


def test_a_short_training_writes_weights_that_load(phantoms, small, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "sources", lambda split: phantoms)
    monkeypatch.setattr(quality, "phantom", lambda rng: phantoms[0])
    judge = quality_figures.judge
    monkeypatch.setattr(quality, "judge", lambda network, images, count, seed: judge(network, images, 16, seed))
    quality.train(0.01, tmp_path / "weights.safetensors")
    network = QualityNet()
    load_weights(network, tmp_path / "weights.safetensors")
    assert torch.isfinite(network.logit_shift).all()
    described = read_manifest(tmp_path)
    assert [label.name for label in described.gives.labels] == ["none", *DEFECTS]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["medai-model.yaml", "weights.safetensors"]


@pytest.mark.parametrize("count", [1, 3])
def test_examples_are_what_the_network_takes(phantoms, count):
    example = quality_draw.make_example(phantoms[0], count, np.random.default_rng(1), {"noise": 1.0})
    assert example.inputs.shape == (count, 6, 96, 96)
    assert example.slice_labels.shape == (count, 6)
    assert example.labels[DEFECTS.index("noise")] == 1


def test_what_an_image_may_have_anyway_is_unknown(phantoms):
    source = Source("noisy", "MR", phantoms[0].pixels, unknown=("blur",))
    example = quality_draw.make_example(source, 1, np.random.default_rng(2), {})
    assert np.isnan(example.labels[DEFECTS.index("blur")])
    assert example.labels[DEFECTS.index("noise")] == 0


def test_unknown_labels_do_not_count_in_the_loss():
    logits = torch.tensor([[0.0, 5.0]])
    labels = torch.tensor([[0.0, float("nan")]])
    assert quality.masked_loss(logits, labels).item() == pytest.approx(np.log(2))
    labels = torch.tensor([[1.0, float("nan")]])
    assert quality.masked_loss(logits, labels).item() == pytest.approx(quality.POSITIVE_WEIGHT * np.log(2))


def test_auroc_by_hand():
    # of 2 x 2 pairs three are in order, and the unknown one is left out
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.9])
    labels = np.array([0, 0, 1, 1, np.nan])
    assert quality_figures.auroc(scores, labels) == 0.75
    assert np.isnan(quality_figures.auroc(scores, np.zeros(5)))


def test_calibration_puts_the_threshold_at_zero():
    judged = [
        quality_figures.Judged(
            "MR",
            np.full(6, score, np.float32),
            np.full(6, label, np.float32),
            np.zeros((1, 6), np.float32),
            np.zeros((1, 6), np.float32),
            {},
            np.zeros(12, np.float32),
        )
        for score, label in [(3, 0), (4, 0), (5, 0), (7, 1), (8, 1), (9, 1)]
    ]
    network = QualityNet(width=4, hidden=8)
    with torch.no_grad():
        quality.calibrate(network, judged)
    # the threshold lies in the middle between 5 and 7
    torch.testing.assert_close(network.logit_scale * 6 + network.logit_shift, torch.zeros(6), atol=1e-4, rtol=0)
    assert (network.logit_scale > 0).all()


def test_nrrd_by_hand():
    import gzip

    values = np.arange(6, dtype="<i2")
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 3 2 1\nendian: little\nencoding: gzip\n\n"
    np.testing.assert_array_equal(nrrd(header + gzip.compress(values.tobytes())), values.reshape(1, 2, 3))


def test_nifti_has_superior_slices_and_anterior_rows_first():
    import nibabel as nib

    data = np.zeros((2, 3, 4), np.int16)
    data[0, 2, 3] = 7  # left, anterior, superior in RAS
    stored = nib.Nifti1Image(data, np.diag([1, 1, 1, 1])).to_bytes()
    array = nifti(stored)
    assert array.shape == (4, 3, 2)
    assert array[3, 0, 1] == 7
