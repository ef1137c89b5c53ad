"""A real archive: Orthanc with its DICOMweb plugin, on loopback, filled with series made here."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

SCRIPT = Path(__file__).parents[2] / "scripts" / "orthanc.sh"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENT, PATIENT_ID = "Doe^Jane", "ID-4711"
STUDY = "1.2.826.0.1.3680043.8.498.1"
PLAIN, COMPRESSED = f"{STUDY}.1", f"{STUDY}.2"
# what tests add is of another patient
OTHER_STUDY, OTHER_PATIENT = "1.2.826.0.1.3680043.8.498.2", "ID-2"
SLICES = 12
SECONDS = 10.0


@dataclass
class Orthanc:
    """A running archive."""

    folder: Path
    http_port: int
    dicom_port: int
    move_port: int
    tls: bool
    variables: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    web_port: int = 0

    @property
    def web(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.web_port or self.http_port}/dicom-web"

    @property
    def dimse(self) -> str:
        return f"dicom{'+tls' if self.tls else ''}://ORTHANC@127.0.0.1:{self.dicom_port}"

    def start(self) -> None:
        command = ["sh", str(SCRIPT), "start", str(self.folder), str(self.http_port), str(self.dicom_port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.move_port)], env=os.environ | self.variables, stdout=log, stderr=log
            )
        until = time.monotonic() + 20
        while not (_listens(self.http_port) and _listens(self.dicom_port)):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, "Orthanc does not listen"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


def _orthanc(folder: Path, tls: bool = False, **variables: str) -> Orthanc:
    if not shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or not PLUGIN.exists():
        pytest.skip("Orthanc with its DICOMweb plugin is not installed: sh scripts/orthanc.sh install")
    http, dicom, move = free_ports(3)
    made = Orthanc(folder, http, dicom, move, tls, variables)
    made.start()
    return made


def pixels(slices: int = SLICES) -> np.ndarray:
    """A ball of 300 in water of 0, with a pattern that tells the slices apart; 24 x 20 pixels."""
    z, y, x = np.mgrid[:slices, :24, :20]
    ball = (z - slices / 2) ** 2 * 4 + (y - 12) ** 2 + (x - 9) ** 2 < 64
    return (1024 + 300 * ball + z).astype(np.uint16)


def ct_slice(values: np.ndarray, n: int, series: str, compressed: bool = False) -> Dataset:
    """Slice n of a CT tilted by 10 degrees, 2.5 mm apart; instance numbers run against the positions."""
    angle = np.deg2rad(10)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series}.{n + 1}"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, PATIENT_ID, "19610101", "F"
    ds.StudyInstanceUID, ds.StudyID, ds.AccessionNumber = STUDY, "1", "A-17"
    if not series.startswith(f"{STUDY}."):
        ds.StudyInstanceUID, ds.PatientID, ds.AccessionNumber = OTHER_STUDY, OTHER_PATIENT, "A-18"
    ds.StudyDate, ds.StudyTime, ds.StudyDescription = "20240229", "101500", "Abdomen"
    ds.ReferringPhysicianName, ds.Manufacturer = "", "napari-medai"
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.Modality = series, int(series[-1]), "CT"
    ds.SeriesDescription, ds.FrameOfReferenceUID = f"Series {series[-1]}", f"{STUDY}.9"
    ds.PositionReferenceIndicator, ds.ImageType = "", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.AcquisitionNumber = SLICES - n, 1
    ds.ImageOrientationPatient = [round(float(v), 9) for v in (*row, *column)]
    ds.ImagePositionPatient = [round(float(v), 9) for v in (-20, -30, 40) + 2.5 * n * np.cross(row, column)]
    ds.PixelSpacing, ds.SliceThickness = [0.7, 0.8], 2.5
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.PixelData = values.tobytes()
    if compressed:
        ds.compress(RLELossless, generate_instance_uid=False)
    return ds


def write_series(folder: Path, series: str, compressed: bool = False, slices: int = SLICES) -> Path:
    """A series as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, values in enumerate(pixels(slices)):
        ct_slice(values, n, series, compressed).save_as(folder / f"{n:03}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two CT series of 12 slices, one of them compressed (RLE)."""
    folder = tmp_path_factory.mktemp("study")
    write_series(folder / "plain", PLAIN)
    write_series(folder / "compressed", COMPRESSED, compressed=True)
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive without TLS and passwords; empty at first."""
    orthanc = _orthanc(tmp_path_factory.mktemp("orthanc"))
    yield orthanc
    orthanc.kill()


@pytest.fixture(scope="session")
def filled(archive: Orthanc, study: Path) -> Orthanc:
    """The archive with the study; what tests add belongs to another patient and study."""
    from napari_medai.core.stage import Progress
    from napari_medai.pacs import connect

    connect(archive.web).push([study], Progress()).check("pushed to", archive.web)
    return archive


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, a certificate cert.pem with key.pem for 127.0.0.1, and other.pem, an authority that signed nothing."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}-key.pem", "-out", f"{name}.pem", "-subj", f"/CN=Test {name}")
    openssl("req", *key[:-2], "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=127.0.0.1")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "cert.pem")
    return folder


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Orthanc]:
    """An archive with TLS that asks for alice's password; its HTTPS is that of a proxy in front of it."""
    variables = {"ORTHANC_TLS": str(certificates), "ORTHANC_USER": "alice", "ORTHANC_PASSWORD": "wonder land"}
    orthanc = _orthanc(tmp_path_factory.mktemp("guarded"), tls=True, **variables)
    front = Relay(orthanc.http_port, certificates)
    orthanc.web_port = front.port
    yield orthanc
    front.close()
    orthanc.kill()


class Relay:
    """A proxy of a port, with TLS on the client's side if given a folder of certificates.

    It notes what is asked for, and can break connections off after so many bytes to the client.
    """

    def __init__(self, port: int, certificates: Path | None = None) -> None:
        self.target, self.limit, self.passed = port, None, 0
        self.requests: list[str] = []
        self._tls = None
        if certificates is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._run(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._open.append(client)
        with suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open += [client, server]
            self._run(self._pump, client, server, False)
            self._pump(server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if counted:
                    self.passed += len(data)
                    if self.limit is not None and self.passed > self.limit:
                        break
                else:
                    first = data.split(b"\r\n", 1)[0]
                    if first.startswith((b"GET ", b"POST ")):
                        self.requests.append(first.decode("latin-1"))
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it and its connections."""
        for one in (self._server, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def relay() -> Iterator[Callable[[int], Any]]:
    """``relay(port)`` -> a `Relay` in front of it."""
    made: list[Relay] = []

    def make(port: int) -> Relay:
        made.append(Relay(port))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the person's own configuration."""
    for name in ("MEDAI_PACS_USER", "MEDAI_PACS_PASSWORD", "MEDAI_PACS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDAI_ARCHIVES", str(tmp_path / "none.toml"))
