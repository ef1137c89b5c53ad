"""The command as a person runs it: exit codes, standard output, files."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

BIN = Path(sys.executable).parent / "medai"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A small oblique volume, NIfTI."""
    rng = np.random.default_rng(0)
    affine = np.array([[-1.2, 0.3, 0, 20], [0.3, 1.2, 0.1, -30], [0, -0.1, 2.5, -10], [0, 0, 0, 1]])
    path = tmp_path / "head.nii.gz"
    image = nib.Nifti1Image(rng.integers(0, 900, (24, 26, 12)).astype(np.int16), affine)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Eight discs of 24 pixels on a dark ground, TIFF."""
    y, x = np.mgrid[:160, :200]
    image = np.full((160, 200), 40.0)
    for cy in (40, 110):
        for cx in (30, 75, 120, 165):
            image += 160 * ((y - cy) ** 2 + (x - cx) ** 2 < 12**2)
    path = tmp_path / "slide.tif"
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    tifffile.imwrite(path, np.clip(image + noise, 0, 255).astype(np.uint8))
    return path


def test_info_tells_size_spacing_orientation(command, head: Path) -> None:
    done = command("info", head, "--json")
    assert done.returncode == 0, done.stderr
    (series,) = json.loads(done.stdout)["series"]
    assert series["shape"] == [12, 26, 24]
    assert series["orientation"] == "SPL"
    assert series["spacing"] == pytest.approx([2.502, 1.241, 1.237], abs=1e-3)
    plain = subprocess.run([BIN, "info", head], capture_output=True, text=True, check=False)  # as it is installed
    assert plain.returncode == 0, plain.stderr
    assert "z12 x y26 x x24" in plain.stdout


def test_convert_there_and_back_is_the_same_image(command, head: Path, tmp_path: Path) -> None:
    done = command("convert", head, tmp_path / "copy.nii")
    assert done.returncode == 0, done.stderr
    first, second = nib.load(head), nib.load(tmp_path / "copy.nii")
    turned = nib.as_closest_canonical(first)
    again = nib.as_closest_canonical(second)
    np.testing.assert_allclose(again.affine, turned.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(turned.dataobj))


def test_segment_a_slide_into_labels_and_a_table(command, slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "nuclei.tif"
    done = command("segment", slide, "--model", "nuclei", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["rows"]) == 8
    assert record["columns"][:3] == ["index", "label", "score"]
    assert tifffile.imread(out).max() == 8
    assert "segment: 100 %" in done.stderr  # plain lines where there is no terminal


def test_detect_writes_csv(command, slide: Path, tmp_path: Path) -> None:
    done = command("detect", slide, "--out", tmp_path / "found.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "found.csv").open() as file:
        assert next(csv.reader(file))[:3] == ["index", "label", "score"]


def test_classify_prints_the_agreed_json(command, head: Path) -> None:
    done = command("classify", head, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["model"] == "quality"
    assert {"noise", "blur", "motion", "ghosting"} <= set(record["scores"])
    assert [s["index"] for s in record["slices"]] == list(range(12))
    assert sum(s["attention"] for s in record["slices"]) == pytest.approx(1)


def test_explain_lies_on_the_scan(command, head: Path, tmp_path: Path) -> None:
    done = command("explain", head, "--target", "noise", "--out", tmp_path / "heat.nii.gz")
    assert done.returncode == 0, done.stderr
    heat, scan = (nib.as_closest_canonical(nib.load(p)) for p in (tmp_path / "heat.nii.gz", head))
    assert heat.shape == scan.shape
    np.testing.assert_allclose(heat.affine, scan.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["info", "absent.nii"], 1, "absent.nii does not exist"),
        (["segment", "absent.nii"], 1, "does not exist"),
        (["segment"], 2, "Missing argument"),
        (["segmend"], 2, "No such command"),
        (["segment", "absent.nii", "--tile", "-1"], 2, "--tile"),
        (["segment", "absent.nii", "--device", "gpu"], 2, "--device"),
        (["models", "show", "nope"], 1, "No model is called 'nope'"),
    ],
)
def test_exit_codes_and_one_clear_message(command, arguments: list[str], code: int, says: str) -> None:
    done = command(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_does_not_fit_is_refused_and_writes_nothing(command, head: Path, tmp_path: Path) -> None:
    done = command("segment", head, "--model", "nuclei", "--out", tmp_path / "no.nii.gz")
    assert done.returncode == 1
    assert "works on 2-D images; this one is 3-D" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.nii.gz"]


def test_control_c_stops_with_one_line_and_leaves_no_file(slide: Path, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [BIN, "denoise", slide, "--steps", "20000", "--out", tmp_path / "clean.tif"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # whoever runs the tests in the background may have had the signal ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stderr is not None
    try:
        while "%" not in run.stderr.readline():  # the first line of progress: it runs
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 1
    assert "stopped" in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slide.tif"]


def test_a_batch_goes_on_after_a_failure_and_resumes(command, slide: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\x00 this is no image")
    out = tmp_path / "out"
    done = command("batch", "segment", slide, broken, "--model", "nuclei", "--suffix", ".csv", "--out", out, "--json")
    assert done.returncode == 1
    assert [o["status"] for o in json.loads(done.stdout)] == ["done", "failed"]
    assert sorted(p.name for p in out.iterdir()) == ["slide.csv"]
    again = command("batch", "segment", slide, "--model", "nuclei", "--suffix", ".csv", "--out", out, "--json")
    assert [o["status"] for o in json.loads(again.stdout)] == ["skipped"]


def test_models_and_doctor(command) -> None:
    models = json.loads(command("models", "list", "--json").stdout)
    assert {"brain", "nuclei", "quality", "micronuclei", "blobs3d", "self2d", "self3d"} <= {m["id"] for m in models}
    report = json.loads(command("doctor", "--json").stdout)
    assert set(report) == {"software", "devices", "codecs", "viewer", "samples", "models"}
    assert "not a medical device" in command("models", "show", "nuclei").stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["detect", "--out", "found.nii.gz"], "does not say how to write a table"),
        (["denoise", "--out", "clean.csv"], "does not say how to write an image"),
        (["segment", "--out", "absent/nuclei.tif"], "make it first"),
        (["segment", "--out", "{slide}"], "is what is read; give another name"),
        (["segment", "--out", "taken.ome.zarr"], "there is something else of that name"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_anything_is_computed(
    command, monkeypatch: pytest.MonkeyPatch, slide: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.ome.zarr").mkdir()
    before = slide.read_bytes()
    done = command(arguments[0], slide, *(text.format(slide=slide) for text in arguments[1:]))
    assert done.returncode == 2, done.stderr
    assert slide.read_bytes() == before
    assert says in done.stderr
    assert "%" not in done.stderr  # no progress: nothing ran
