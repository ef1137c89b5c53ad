"""Archives of studies: opened like the folder they hold, and harmless whatever they hold."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

import napari_medai as medai
from napari_medai.core.errors import NoImagesError, ReadError, SeriesChoiceError
from napari_medai.io import archive, find_format
from napari_medai.io.dicom.series import scan
from napari_medai.ui.readers import dicom_reader

CT = Path(get_testdata_file("CT_small.dcm"))
MR = Path(get_testdata_file("MR_small.dcm"))


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return path


def nifti(folder: Path, value: int = 7, pair: bool = False) -> dict[str, bytes]:
    """A NIfTI of 3 x 4 x 5 voxels as members of an archive."""
    kind = nibabel.Nifti1Pair if pair else nibabel.Nifti1Image
    image = kind(np.full((3, 4, 5), value, np.int16), np.diag([-1, -1, 1, 1.0]))
    names = ("brain.hdr", "brain.img") if pair else ("brain.nii.gz",)
    nibabel.save(image, folder / names[0])
    return {f"study/{name}": (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_one_series_opens_as_from_its_folder(tmp_path: Path, make: object) -> None:
    suffix = ".zip" if make is zipped else ".tar"
    path = make(tmp_path / f"study{suffix}", {"a/b/IM0001": CT.read_bytes(), "a/readme.txt": b"hello"})
    assert find_format(path).name == "archive"
    volume, expected = medai.open(path), medai.open(CT)
    np.testing.assert_array_equal(volume.numpy(), expected.numpy())
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.is_lazy
    assert volume.source == str(path)
    assert volume.meta["series_uid"] == expected.meta["series_uid"]
    assert volume.meta["findings"][-1] == "1 files in the archive are neither DICOM nor NIfTI and were left out."
    assert [s.uid for s in medai.list_series(path)] == [expected.meta["series_uid"]]


def test_several_series_have_to_be_chosen(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", {"1": CT.read_bytes(), "2": MR.read_bytes(), **nifti(tmp_path)})
    with pytest.raises(SeriesChoiceError, match=r"3 series in s\.zip") as caught:
        medai.open(path)
    assert [s.modality for s in caught.value.series] == ["CT", "MR", ""]
    for series in caught.value.series:
        volume = medai.open(path, series_uid=series.uid)
        assert volume.shape == series.shape
        assert (volume.source, volume.meta["series_uid"]) == (str(path), series.uid)
    assert caught.value.series[2].uid == "1/brain.nii.gz"


@pytest.mark.parametrize("pair", [False, True])
def test_nifti_with_the_options_of_its_reader(tmp_path: Path, pair: bool) -> None:
    path = zipped(tmp_path / "n.zip", nifti(tmp_path, pair=pair))
    volume = medai.open(path, labels=True)
    assert volume.meta["is_labels"] is True
    assert volume.name == "brain"
    assert set(volume.numpy().ravel()) == {7}


def test_the_instances_are_found_again_by_the_source(tmp_path: Path) -> None:
    volume = medai.open(zipped(tmp_path / "s.zip", {"x/CT.dcm": CT.read_bytes()}))
    (series,) = scan(volume.source)
    assert dcmread(series.headers[0].path).SOPInstanceUID == dcmread(CT).SOPInstanceUID


def test_unpacked_once_and_again_when_changed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", {"1": CT.read_bytes()})
    first = archive.unpacked(path)
    assert archive.unpacked(path) is first
    zipped(path, {"1": MR.read_bytes(), "2": b"x"})
    assert archive.unpacked(path) is not first
    assert medai.open(path).modality == "MR"


def test_the_folder_is_private_and_goes_with_the_program(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", {"1": CT.read_bytes()})
    program = (
        "import os, pathlib, sys, napari_medai.io.archive as a\n"
        "folder = a.unpacked(pathlib.Path(sys.argv[1])).dicom.parent\n"
        "assert len(list(folder.rglob('*'))) == 2\n"
        "print(oct(folder.stat().st_mode & 0o777), folder, flush=True)\n"
    )
    run = [sys.executable, "-c", program, str(path)]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "0o700"
    assert not Path(said[1]).exists()
    # one that was killed leaves its folder to the next
    run[2] = program + "os._exit(0)"
    left = Path(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()[1])
    assert left.exists()
    run[2] = program
    subprocess.run(run, capture_output=True, text=True, check=True)
    assert not left.exists()


class TestEscapes:
    """Names and links that lead elsewhere."""

    @pytest.mark.parametrize(
        "name", ["../../x.dcm", "/etc/x.dcm", "C:\\x.dcm", "C:x.dcm", "a/../../x.dcm", "..\\x.dcm"]
    )
    @pytest.mark.parametrize("make", [zipped, tarred])
    def test_are_left_out(self, tmp_path: Path, make: object, name: str) -> None:
        path = make(tmp_path / "s.zip", {name: MR.read_bytes(), "good": CT.read_bytes()})
        volume = medai.open(path)
        assert volume.modality == "CT"
        assert "1 files in the archive have names that lead out of the archive" in " ".join(volume.meta["findings"])
        unpacked = archive.unpacked(path).dicom.parent
        assert [p.name for p in unpacked.rglob("*") if p.is_file()] == ["000001"]

    def test_links_are_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "s.tar"
        with tarfile.open(path, "w") as out:
            out.add(CT, "ct.dcm")
            for kind, name in ((tarfile.SYMTYPE, "l.dcm"), (tarfile.LNKTYPE, "h.dcm"), (tarfile.FIFOTYPE, "f.dcm")):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, "/etc/passwd"
                out.addfile(entry)
        assert "3 files in the archive are links" in " ".join(medai.open(path).meta["findings"])
        link = zipfile.ZipInfo("l.dcm")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as out:
            out.writestr(link, "/etc/passwd")
            out.write(CT, "ct.dcm")
        assert "1 files in the archive are links" in " ".join(medai.open(tmp_path / "s.zip").meta["findings"])

    def test_names_of_other_scripts_and_separators(self, tmp_path: Path) -> None:
        (content,) = nifti(tmp_path).values()
        path = zipped(
            tmp_path / "s.zip", {"a/b\\Schädel 頭 <1>.nii.gz": content, "c/" + "x" * 300 + ".nii.gz": content}
        )
        assert [s.uid for s in medai.list_series(path)] == ["1/Schädel_頭_1.nii.gz", f"2/{'x' * 80}.nii.gz"]

    def test_an_archive_in_an_archive_is_not_opened(self, tmp_path: Path) -> None:
        inner = zipped(tmp_path / "i.zip", {"1": MR.read_bytes()}).read_bytes()
        volume = medai.open(zipped(tmp_path / "s.zip", {"inner.dcm": inner, "2": CT.read_bytes()}))
        assert volume.modality == "CT"
        assert "1 files in the archive are archives themselves" in " ".join(volume.meta["findings"])


class TestRefusals:
    """What is no study, or too much."""

    def test_no_images(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "s.zip", {"Smith^John.txt": b"x"})
        with pytest.raises(NoImagesError, match="no DICOM and no NIfTI") as caught:
            medai.open(path)
        assert "Smith" not in str(caught.value)
        assert dicom_reader(str(path)) is None

    def test_reader_of_the_viewer(self, tmp_path: Path) -> None:
        assert dicom_reader(str(zipped(tmp_path / "a.zip", {"1": b"x", "2": CT.read_bytes()}))) is not None
        assert dicom_reader(str(zipped(tmp_path / "b.zip", nifti(tmp_path)))) is not None
        (tmp_path / "c.zip").write_bytes(b"PK\3\4nonsense")
        assert dicom_reader(str(tmp_path / "c.zip")) is None

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "s.zip", {"1.nii": bytes(archive.ALWAYS_BYTES + 1)})
        before = set(Path(tempfile.gettempdir()).glob("medai-archive-*"))
        with pytest.raises(ReadError, match=r"would unpack from 0\.3 MB to 268 MB"):
            medai.open(path)
        assert set(Path(tempfile.gettempdir()).glob("medai-archive-*")) <= before

    def test_a_size_that_lies_is_found_out(self, tmp_path: Path) -> None:
        data = bytearray(zipped(tmp_path / "s.zip", {"1.nii": bytes(5000), "2": CT.read_bytes()}).read_bytes())
        at = data.index(b"PK\1\2")
        data[at + 24 : at + 28] = struct.pack("<I", 400)
        (tmp_path / "s.zip").write_bytes(data)
        assert "1 files in the archive are damaged" in " ".join(medai.open(tmp_path / "s.zip").meta["findings"])

    def test_too_many_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("napari_medai.io.archive_members.MOST_MEMBERS", 3)
        path = zipped(tmp_path / "s.zip", {str(n): b"x" for n in range(4)})
        with pytest.raises(ReadError, match="more than 3 files"):
            medai.open(path)

    def test_encrypted(self, tmp_path: Path) -> None:
        data = bytearray(zipped(tmp_path / "s.zip", {"1": CT.read_bytes()}).read_bytes())
        data[6] |= 1
        data[data.index(b"PK\1\2") + 8] |= 1
        (tmp_path / "s.zip").write_bytes(data)
        with pytest.raises(ReadError, match="encrypted; unpack it with its password"):
            medai.open(tmp_path / "s.zip")

    def test_compression_with_memory_of_its_own_choice(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "s.zip", {"1": CT.read_bytes()}, zipfile.ZIP_LZMA)
        with pytest.raises(NoImagesError, match="compressed in a way"):
            medai.open(path)

    @pytest.mark.parametrize("make", [zipped, tarred])
    def test_truncated_anywhere(self, tmp_path: Path, make: object) -> None:
        path = make(tmp_path / "s.zip", {"1": CT.read_bytes()})
        data = path.read_bytes()
        ends = (len(data) // 4, len(data) // 2, *((len(data) - 10,) if make is zipped else ()))  # tar ends in zeros
        for keep in (0, 3, 30, 600, *ends):
            path.write_bytes(data[:keep])
            with pytest.raises(ReadError, match=r"s\.zip"):
                medai.open(path)

    def test_errors_name_the_archive_and_not_the_temporary_folder(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "s.zip", {"a.nii": bytes(500)})
        with pytest.raises(ReadError) as caught:
            medai.open(path)
        assert str(caught.value).startswith(f"s.zip{os.sep}1{os.sep}a.nii")

    def test_a_member_without_a_name(self, tmp_path: Path) -> None:
        data = zipped(tmp_path / "s.zip", {"ab": CT.read_bytes()}).read_bytes()
        for start, at in ((b"PK\3\4", 26), (b"PK\1\2", 28)):
            where = data.index(start)
            name = where + (30 if start == b"PK\3\4" else 46)
            data = data[: where + at] + b"\0\0" + data[where + at + 2 : name] + data[name + 2 :]
        end = data.rindex(b"PK\5\6")
        directory = data.index(b"PK\1\2")
        data = data[: end + 12] + struct.pack("<II", end - directory, directory) + data[end + 20 :]
        (tmp_path / "s.zip").write_bytes(data)
        with pytest.raises(NoImagesError, match="lead out of the archive"):
            medai.open(tmp_path / "s.zip")
