"""Images for the classifier ``quality``: real ones out of packages, split by subject, and phantoms.

Each source is one subject or one image and belongs to one split only. Colin27, the stardist 3-D stack, the
retina, the slide of tissue and mnfinder's test images, which the product shows as samples, are only ever tested on.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import scipy.ndimage as ndi
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_medai.engine.slices import to_grey
from training.packages import PackageMissingError, cache_folder, package_member, package_members

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One subject's volume, or one image.

    Attributes
    ----------
    name : str
    kind : str
        ``"MR"``, ``"CT"``, ``"microscopy"`` or ``"other"``.
    pixels : array (z, y, x), stored dtype
        An image has z = 1.
    every_axis : bool
        The voxels are near cubes, so that slices along any axis are real views.
    unknown : tuple of str
        Defects that the image as acquired may have; their absence is never taught nor counted.
    shrink : float
        Least factor by which training shrinks the image (averaged templates are smooth at full size).
    """

    name: str
    kind: str
    pixels: Pixels
    every_axis: bool = False
    unknown: tuple[str, ...] = ()
    shrink: float = 1.0


def nifti(data: bytes) -> Pixels:
    """Array (z, y, x), z superior, of the first volume of a NIfTI file."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(data))
    array = np.asanyarray(image.dataobj)
    return np.ascontiguousarray((array[..., 0] if array.ndim == 4 else array).T[:, ::-1, ::-1])


def nrrd(data: bytes) -> Pixels:
    """Array (z, y, x) of a gzip-compressed NRRD file with the data attached."""
    header, _, body = data.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    if fields["encoding"].strip() != "gzip" or fields["type"].strip() != "short":
        raise ValueError(f"an NRRD file of {fields['type']}, {fields['encoding']}; expected short, gzip")
    shape = tuple(int(n) for n in fields["sizes"].split())[::-1]
    dtype = "<i2" if fields.get("endian", "little").strip() == "little" else ">i2"
    return np.frombuffer(gzip.decompress(body), dtype).reshape(shape).astype(np.int16)


def dicom(path: Path) -> Pixels:
    """Array (z, y, x) of one DICOM file, colour turned into brightness; a cine loop gives its middle frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # test files carry odd values on purpose
        data = pydicom.dcmread(path)
        array = data.pixel_array
    if data.get("SamplesPerPixel", 1) == 3:
        array = to_grey(array[len(array) // 2] if array.ndim == 4 else array, -1)
    return array[None] if array.ndim == 2 else array


def picture(data: bytes) -> Pixels:
    """Array (1, y, x) of a PNG or JPEG file, colour turned into brightness."""
    array = np.asarray(Image.open(io.BytesIO(data)))
    return (to_grey(array, -1) if array.ndim == 3 else array)[None]


def _pyradiomics(name: str) -> Pixels:
    found = sorted((cache_folder() / "packages").glob("pyradiomics-*.tar.gz"))
    if not found:
        raise PackageMissingError(
            "no package 'pyradiomics' in the packages folder of the cache; put it there with "
            "`pip download --no-deps --no-build-isolation --no-binary pyradiomics pyradiomics==3.0.1`"
        )
    with tarfile.open(found[-1]) as tar:
        file = tar.extractfile(f"{found[-1].name.removesuffix('.tar.gz')}/data/{name}_image.nrrd")
        assert file is not None
        return nrrd(file.read())


def _installed(package: str, name: str) -> Path:
    return Path(str(resources.files(package).joinpath(name)))


def _skimage(name: str) -> Pixels:
    return picture(_installed("skimage.data", name).read_bytes())


def _pydicom(name: str) -> Pixels:
    for package, folder in (("pydicom.data", "test_files"), ("data_store", "data")):
        path = _installed(package, folder) / name
        if path.exists():
            return dicom(path)
    raise PackageMissingError(f"neither pydicom nor pydicom-data holds {name!r}; install pydicom-data")


def _nibabel(name: str) -> Pixels:
    return nifti(_installed("nibabel.tests", "data").joinpath(name).read_bytes())


def _stardist(name: str) -> Pixels:
    array = tifffile.imread(io.BytesIO(package_member("stardist", f"stardist/data/images/{name}.tif")))
    return array[None] if array.ndim == 2 else array


def _member(package: str, name: str) -> Pixels:
    return nifti(package_member(package, name))


TEMPLATES = "usr/share/mricron/templates/"
TRAINING: dict[str, Callable[[], Source]] = {
    "brain1": lambda: Source("head MR, patient 1 (pyradiomics)", "MR", _pyradiomics("brain1"), unknown=("bias field",)),
    "inia19": lambda: Source(
        "macaque brain template INIA19",
        "MR",
        _member("mricron-data", TEMPLATES + "inia19-t1-brain.nii.gz"),
        True,
        shrink=1.2,
    ),
    "mni152": lambda: Source(
        "MNI152 template",
        "MR",
        _member("nilearn", "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
        True,
        shrink=1.2,
    ),
    "mean head": lambda: Source(
        "mean head (pydeface)",
        "MR",
        _member("pydeface", "pydeface/data/mean_reg2mean.nii.gz"),
        True,
        ("bias field",),
        2.5,
    ),
    "diffusion": lambda: Source(
        "diffusion MR (dipy)", "MR", _member("dipy", "dipy/data/files/S0_10slices.nii.gz"), unknown=("clipping",)
    ),
    "diffusion 2": lambda: Source(
        "diffusion MR 2 (dipy)", "MR", _member("dipy", "dipy/data/files/aniso_vox.nii.gz"), unknown=("noise", "blur")
    ),
    "abdomen": lambda: Source(
        "abdominal MR (pydicom)", "MR", _pydicom("examples_overlay.dcm"), unknown=("bias field",)
    ),
    "MR_small": lambda: Source(
        "MR detail (pydicom)", "MR", _pydicom("MR_small.dcm"), unknown=("clipping", "bias field")
    ),
    "lung1": lambda: Source("chest CT, patient 1 (pyradiomics)", "CT", _pyradiomics("lung1")),
    "abdomen CT": lambda: Source("abdominal CT (pydicom)", "CT", _pydicom("explicit_VR-UN.dcm")),
    "spine CT": lambda: Source("spine CT (pydicom)", "CT", _pydicom("bad_sequence.dcm"), unknown=("noise",)),
    "CT_small": lambda: Source("spine CT detail (pydicom)", "CT", _pydicom("CT_small.dcm")),
    "chest": lambda: Source("chest radiograph (pydicom)", "other", _pydicom("RG1_UNCR.dcm"), unknown=("clipping",)),
    "echo": lambda: Source(
        "echocardiogram (pydicom)",
        "other",
        _pydicom("JPGLosslessP14SV1_1s_1f_8b.dcm"),
        unknown=("noise", "clipping", "bias field"),
    ),
    "bone scan": lambda: Source(
        "bone scan (pydicom)", "other", _pydicom("JPEG2000_UNC.dcm"), unknown=("noise", "blur", "clipping")
    ),
    "nuclei": lambda: Source("nuclei (stardist, 2-D)", "microscopy", _stardist("img2d")),
    "cell": lambda: Source("cell (scikit-image)", "microscopy", _skimage("cell.png"), unknown=("blur", "ghosting")),
    **{
        name: lambda name=name: Source(f"{name} (scikit-image)", "other", _skimage(f"{name}.png"))  # type: ignore[misc]
        for name in ("camera", "coins", "moon", "brick", "gravel", "grass", "chelsea", "coffee")
    },
}

VALIDATION: dict[str, Callable[[], Source]] = {
    "coronal": lambda: Source(
        "coronal T1 (dipy)",
        "MR",
        np.load(io.BytesIO(package_member("dipy", "dipy/data/files/t1_coronal_slice.npy")))[None],
    ),
    "epi": lambda: Source("echo-planar head MR (nibabel)", "MR", _nibabel("example4d.nii.gz")),
    "shoulder": lambda: Source("shoulder MR (pydicom)", "MR", _pydicom("MR2_UNCR.dcm"), unknown=("bias field",)),
    "lung2": lambda: Source("chest CT, patient 2 (pyradiomics)", "CT", _pyradiomics("lung2")),
    "leg": lambda: Source(
        "leg radiograph (pydicom)", "other", _pydicom("RG3_UNCR.dcm"), unknown=("clipping", "bias field")
    ),
    "astronaut": lambda: Source("astronaut (scikit-image)", "other", _skimage("astronaut.png")),
    "hubble": lambda: Source(
        "deep field (scikit-image)", "other", _skimage("hubble_deep_field.jpg"), unknown=("clipping", "noise")
    ),
}

TEST: dict[str, Callable[[], Source]] = {
    "colin27": lambda: Source("head MR Colin27", "MR", _member("mricron-data", TEMPLATES + "ch2.nii.gz"), True),
    "brain2": lambda: Source("head MR, patient 2 (pyradiomics)", "MR", _pyradiomics("brain2"), unknown=("bias field",)),
    "head CT 1": lambda: Source("head CT, skull base (pydicom)", "CT", _pydicom("J2K_pixelrep_mismatch.dcm")),
    "head CT 2": lambda: Source("head CT, vertex (pydicom)", "CT", _pydicom("693_UNCI.dcm")),
    "stack": lambda: Source(
        "nuclei stack (stardist, 3-D)", "microscopy", _stardist("img3d"), unknown=("noise", "blur")
    ),
    "tissue": lambda: Source("stained tissue (scikit-image)", "microscopy", _skimage("ihc.png")),
    "retina": lambda: Source("retina (scikit-image)", "other", _skimage("retina.jpg")),
}


def mnfinder(part: str, skip: frozenset[str] = frozenset()) -> Iterator[Source]:
    """Fluorescence images of one part of mnfinder, without those whose pixels are in ``skip``.

    One test image of mnfinder 1.2.3 has the very pixels of a training image; ``skip`` holds digests of pixels.
    """
    for member in package_members("mnfinder"):
        if f"/{part}/" in member and "/images/" in member and member.endswith(".tif"):
            pixels = tifffile.imread(io.BytesIO(package_member("mnfinder", member)))
            if digest(pixels) not in skip:
                yield Source("mnfinder " + member.split("/", 2)[2].replace("images/", ""), "microscopy", pixels[None])


def digest(pixels: Pixels) -> str:
    """Digest of pixel values, to find images that occur twice."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def sources(split: str) -> list[Source]:
    """All real images of a split.

    Parameters
    ----------
    split : {"training", "validation", "test"}

    Raises
    ------
    PackageMissingError
        If a package with images is not in the cache; the message says how to fetch it.
    """
    table = {"training": TRAINING, "validation": VALIDATION, "test": TEST}[split]
    found = [make() for make in table.values()]
    if split == "training":
        tested = frozenset(digest(s.pixels) for s in mnfinder("test-data"))
        return found + list(mnfinder("training-data", tested))
    if split == "validation":
        return found + list(mnfinder("validation-data"))
    return found + list(mnfinder("test-data", frozenset(digest(s.pixels) for s in mnfinder("training-data"))))


def corpus_sources() -> list[Source]:
    """Heads from the folder of real files named by ``MEDAI_CORPUS``, for testing only; none if it is not there."""
    folder = os.environ.get("MEDAI_CORPUS")
    if not folder:
        return []
    found = []
    head = Path(folder).parent / "models" / "brainchop" / "t1_crop.nii.gz"
    if head.exists():
        found.append(Source("head MR t1_crop (brainchop)", "MR", nifti(head.read_bytes()), True))
    return found


def phantom(rng: np.random.Generator, size: int = 176, slices: int = 24) -> Source:
    """A made-up volume without any defect: textured ellipsoids in a body, nuclei on a dark ground, or fibres."""
    z, y, x = np.meshgrid(
        np.linspace(-1, 1, slices), np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij", sparse=True
    )
    kind = rng.choice(["body", "nuclei", "fibres"], p=[0.5, 0.35, 0.15])
    image = np.zeros((slices, size, size), np.float32)
    if kind == "body":
        outer = (y / rng.uniform(0.6, 0.95)) ** 2 + (x / rng.uniform(0.5, 0.9)) ** 2 + (0.5 * z) ** 2
        body = outer < 1
        image[body] = rng.uniform(0.3, 0.7)
        if rng.random() < 0.6:  # a bright or dark shell, like skull or fat
            image[body & (outer > rng.uniform(0.8, 0.93))] = rng.uniform(0, 1.2)
        for _ in range(rng.integers(8, 40)):
            centre = rng.uniform(-0.6, 0.6, 3)
            radii = rng.uniform(0.03, 0.35, 3) + np.array([0.4, 0, 0])
            turn = rng.uniform(0, np.pi)
            v = (y - centre[1]) * np.cos(turn) - (x - centre[2]) * np.sin(turn)
            u = (y - centre[1]) * np.sin(turn) + (x - centre[2]) * np.cos(turn)
            part = (((z - centre[0]) / radii[0]) ** 2 + (v / radii[1]) ** 2 + (u / radii[2]) ** 2 < 1) & body
            image[part] = rng.uniform(0.05, 1.0)
        folds = ndi.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (1, 3, 3))
        image += np.where(body, rng.uniform(0, 0.25) * np.sign(folds), 0).astype(np.float32)
    elif kind == "nuclei":
        image += rng.uniform(0, 0.15)
        for _ in range(rng.integers(10, 120)):
            centre, radius = rng.uniform(-1, 1, 3), rng.uniform(0.02, 0.12)
            stretch = rng.uniform(0.7, 1.4)
            part = (0.3 * (z - centre[0])) ** 2 + ((y - centre[1]) * stretch) ** 2 + ((x - centre[2]) / stretch) ** 2
            image[part < radius**2] = rng.uniform(0.2, 1.0)
        grain = ndi.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), (1, 2, 2))
        image *= 1 + rng.uniform(0, 1.5) * grain
    else:
        for _ in range(rng.integers(20, 90)):
            turn, offset = rng.uniform(0, np.pi), rng.uniform(-1, 1)
            wave = 0.1 * np.sin(rng.uniform(1, 6) * (x + z))
            line = np.abs(y * np.cos(turn) + x * np.sin(turn) + wave - offset)
            image = np.maximum(image, rng.uniform(0.2, 1) * (line < rng.uniform(0.006, 0.04)))
    soft = ndi.gaussian_filter(image, (0, 0.6, 0.6))  # the edge of a real detector's pixel
    return Source(f"phantom of {kind}", "other", soft.astype(np.float32))
