"""Nuclei of a whole slide: time and peak memory against a crop that fits into memory.

::

    python -m benchmarks.slide                 # OME-Zarr of 30,000 x 30,000, a fifth of it tissue
    python -m benchmarks.slide --kind tiff     # a pyramid in compressed tiles; or dicom, sparse (tiles of 0 left out)
    python -m benchmarks.slide --edge 8192 --noise 10  # around the tissue; with and without leaving it out

The slide is made of a real fluorescence image (`micronuclei_slide`, 768 x 869 pixels, 16 bits), mirrored and turned
from field to field so that nuclei meet at every seam. Outside of the tissue it is 0, as where a scanner did not look,
or noise around the image's darkest grey levels (of 7,500 to its brightest nuclei). It is made and written in rows.
Every run is in a process of its own, whose peak resident size is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import fresh, watched

Kind = Literal["zarr", "tiff", "dicom", "sparse"]
# The largest crop that is held in memory as a whole
CROP = 4096
_CHUNK = 1024
_UM = 0.5
# Around which there is tissue, in shares of the slide; a crop is taken around the first
_CENTRES = ((0.3, 0.3), (0.35, 0.7), (0.7, 0.5))


@dataclass(frozen=True, eq=False)
class Fields:
    """A slide out of one field of nuclei and one without; rows of it are made when they are asked for.

    Attributes
    ----------
    edge : int
        Of the slide in pixels.
    tissue, ground : (y, x) uint16 array
        What lies in its cells.
    ways : (down, across) array
        Which way round tissue (0 to 3) or ground (4 to 7) lies in each cell.
    """

    edge: int
    tissue: NDArray[np.uint16]
    ground: NDArray[np.uint16]
    ways: NDArray[np.int8]
    dtype = np.dtype(np.uint16)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the slide."""
        return self.edge, self.edge

    def __getitem__(self, rows: slice) -> NDArray[np.uint16]:
        """Rows without steps, (n, edge)."""
        start, stop, _ = rows.indices(self.edge)
        cell = len(self.tissue)
        parts = []
        for row in range(start // cell, -(-stop // cell)):
            here = slice(max(0, start - row * cell), stop - row * cell)
            turned = [way for of in (self.tissue, self.ground) for way in (of, of[::-1], of[:, ::-1], of[::-1, ::-1])]
            parts.append(np.concatenate([turned[way][here] for way in self.ways[row]], axis=1)[:, : self.edge])
        return np.concatenate(parts)

    def share(self, rows: slice, columns: slice) -> float:
        """How much of a part of the slide is tissue, 0 to 1."""
        where = [
            np.bincount(np.arange(part.start, part.stop) // size, minlength=count)
            for part, size, count in zip((rows, columns), self.tissue.shape, self.ways.shape, strict=True)
        ]
        return float(where[0] @ (self.ways < 4) @ where[1] / (where[0].sum() * where[1].sum()))


def fields(edge: int, tissue: float = 1.0, noise: float = 0.0, seed: int = 0) -> Fields:
    """A slide.

    Parameters
    ----------
    edge : int
        In pixels.
    tissue : float
        Share of the cells that are tissue: those nearest to one of three centres.
    noise : float
        Standard deviation of the camera's noise on the ground, in grey levels; 0: the ground is 0.
    seed : int
        Of the order and of the noise.
    """
    from napari_medai.samples import sample

    image = np.asarray(sample("micronuclei_slide").array)
    rng = np.random.default_rng(seed)
    if noise:
        field = image
        ground = rng.normal(np.percentile(image, 1), noise, image.shape).round().clip(0).astype(np.uint16)
    else:
        # without the camera's offset, or the edge of the tissue would be a step that no scanner makes
        field = np.clip(image.astype(np.int32) - int(np.percentile(image, 1)), 0, None).astype(np.uint16)
        ground = np.zeros_like(field)
    down, across = -(-edge // field.shape[0]), -(-edge // field.shape[1])
    y, x = np.mgrid[:down, :across]
    centres = np.array(_CENTRES) * [down, across]
    distance = np.min([np.hypot(y + 0.5 - a, x + 0.5 - b) for a, b in centres], axis=0)
    ways = rng.integers(4, 8, distance.size).astype(np.int8)
    ways[np.argsort(distance.ravel(), kind="stable")[: round(tissue * distance.size)]] -= 4
    return Fields(edge, field, ground, ways.reshape(down, across))


def make(kind: Kind, folder: Path, pixels: Any) -> Path:
    """A slide as a file of some kind, in a folder."""
    if kind == "zarr":
        path = folder / "slide.ome.zarr"
        make_zarr(path, pixels)
    elif kind == "tiff":
        path = folder / "slide.ome.tif"
        make_tiff(path, pixels)
    else:
        path = folder / "slide"
        make_dicom(path, pixels, sparse=kind == "sparse")
    return path


def make_zarr(path: Path, pixels: Any, levels: int = 4) -> None:
    """A pyramid of levels halved each time as OME-Zarr 0.5."""
    import zarr

    group = zarr.open_group(path, mode="w")
    arrays = [
        group.create_array(
            str(n),
            shape=tuple(-(-size // 2**n) for size in pixels.shape),
            chunks=(_CHUNK, _CHUNK),
            dtype=pixels.dtype,
            fill_value=0,
            dimension_names=("y", "x"),
        )
        for n in range(levels)
    ]
    for start in range(0, pixels.shape[0], _CHUNK):
        rows = pixels[start : start + _CHUNK]
        for n, array in enumerate(arrays):
            thin = rows[:: 2**n, :: 2**n]
            array[start // 2**n : start // 2**n + len(thin)] = thin
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [_UM * 2**n] * 2}]}
        for n in range(levels)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def tiles_of(pixels: Any, tile: int, step: int = 1) -> Iterator[tuple[tuple[int, int], NDArray[np.uint16]]]:
    """Row, column and pixels of the tiles of every ``step``-th pixel; beyond the end they are 0."""
    for y in range(0, -(-pixels.shape[0] // step), tile):
        rows = pixels[y * step : (y + tile) * step][::step, ::step]
        for x in range(0, rows.shape[1], tile):
            part = rows[:, x : x + tile]
            yield (y, x), np.pad(part, [(0, tile - n) for n in part.shape])


def make_tiff(path: Path, pixels: Any, tile: int = 256) -> None:
    """A pyramid of two levels as OME-TIFF, in tiles that are compressed."""
    import tifffile

    options = {"dtype": pixels.dtype, "tile": (tile, tile), "compression": "zlib", "photometric": "minisblack"}
    size = {"PhysicalSizeX": _UM, "PhysicalSizeY": _UM, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        for n, more in enumerate(({"subifds": 1, "metadata": {"axes": "YX", **size}}, {"subfiletype": 1})):
            shape = tuple(-(-size // 2**n) for size in pixels.shape)
            file.write((part for _, part in tiles_of(pixels, tile, 2**n)), shape=shape, **options, **more)


def make_dicom(path: Path, pixels: Any, tile: int = 256, sparse: bool = False) -> None:
    """A level of a slide as DICOM VL whole slide microscopy, in a new folder; ``sparse`` leaves tiles of 0 out."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    places = [place for place, part in tiles_of(pixels, tile) if not sparse or part.any()]
    made = item(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6", SOPInstanceUID=generate_uid(), StudyInstanceUID="1.2.826.0.1.1",
        SeriesInstanceUID=generate_uid(), Modality="SM", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        TotalPixelMatrixRows=pixels.shape[0], TotalPixelMatrixColumns=pixels.shape[1], NumberOfFrames=len(places),
        Rows=tile, Columns=tile, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0, TotalPixelMatrixFocalPlanes=1, NumberOfOpticalPaths=1,
        DimensionOrganizationType="TILED_SPARSE" if sparse else "TILED_FULL", InstanceNumber=1,
        OpticalPathSequence=[item(OpticalPathIdentifier="1")],
        SharedFunctionalGroupsSequence=[
            item(PixelMeasuresSequence=[item(PixelSpacing=[_UM / 1000] * 2, SliceThickness=0.001)])
        ],
    )  # fmt: skip
    if sparse:
        made.PerFrameFunctionalGroupsSequence = [
            item(
                PlanePositionSlideSequence=[
                    item(
                        RowPositionInTotalImagePixelMatrix=y + 1, ColumnPositionInTotalImagePixelMatrix=x + 1,
                        ZOffsetInSlideCoordinateSystem=0.0,
                    )
                ],
                OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="1")],
            )
            for y, x in places
        ]  # fmt: skip
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.mkdir(exist_ok=True)
    wanted = set(places)
    with (path / "level.dcm").open("wb") as file:
        dcmwrite(file, made, enforce_file_format=True)
        # Pixel Data (7FE0,0010) of the other words, PS3.5 7.1.2: written tile by tile, pydicom would want all at once
        file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 2 * tile * tile * len(places)))
        for place, part in tiles_of(pixels, tile):
            if place in wanted:
                file.write(part.astype("<u2").tobytes())


def segment(path: str, crop: int = 0, diameter: float = 0.0, skip: bool = True) -> dict[str, Any]:
    """Outline the nuclei of a slide, or of a crop out of its tissue; run in a fresh process by `compare`.

    Parameters
    ----------
    path : str
        Of the slide.
    crop : int
        Edge of a crop that is held in memory; 0 takes the slide.
    diameter : float
        See `SegmentParams`.
    skip : bool
        Whether windows that the model's card calls background are left out.
    """
    import napari_medai as medai

    volume = medai.open(path).replace(modality="fluorescence")
    model = medai.load_model("nuclei")
    if not skip:
        tiling = model.spec.tiling.model_copy(update={"empty": None})
        model = model.model_copy(update={"spec": model.spec.model_copy(update={"tiling": tiling})})
    if crop:
        volume = volume.replace(array=np.asarray(volume.array[_crop(volume.shape[0], crop)]), meta={})
    with watched() as region:
        mask = medai.segment(volume, model, diameter=diameter)
    labels = hashlib.sha256()
    for start in range(0, volume.shape[0], _CHUNK):
        labels.update(np.ascontiguousarray(mask.labels.array[start : start + _CHUNK]))
    return {
        "pixels": int(np.prod(volume.shape)),
        "objects": len(mask.table["label"]),
        "labels": labels.hexdigest(),
        "tiles": mask.provenance.tiles,
        "seconds": region.seconds,
        "cpu_seconds": region.cpu_seconds,
        "peak_rss_mb": region.peak_mb,
        "notes": list(mask.provenance.notes),
    }


def _crop(edge: int, crop: int) -> tuple[slice, slice]:
    """Rows and columns of a crop around the first centre of tissue."""
    y, x = (min(max(0, round(share * edge) - crop // 2), edge - crop) for share in _CENTRES[0])
    return slice(y, y + crop), slice(x, x + crop)


def compare(
    edge: int = 30_000,
    tissue: float = 0.2,
    crop: int = CROP,
    folder: str = "",
    kind: Kind = "zarr",
    noise: float = 0.0,
) -> dict[str, Any]:
    """The whole slide and a crop of it, each in a fresh process.

    Returns
    -------
    dict
        ``slide`` and ``crop`` as `segment` tells them, ``linear``: seconds of the slide over those of the crop for as
        much tissue. With ``noise`` also ``every``, the slide with each window through the network, ``faster``: its
        seconds over those of the slide, and ``same``: whether the labels are.
    """
    made, crop = fields(edge, tissue, noise), min(crop, edge)
    with tempfile.TemporaryDirectory(dir=folder or None) as where:
        path = str(make(kind, Path(where), made))
        runs = {"crop": {"crop": crop}, "slide": {}} | ({"every": {"skip": False}} if noise else {})
        found = {name: fresh("benchmarks.slide:segment", path=path, **given) for name, given in runs.items()}
    whole = slice(0, edge), slice(0, edge)
    for name, row in found.items():
        row["tissue"] = made.share(*(_crop(edge, crop) if name == "crop" else whole))
        row["seconds_per_tissue_megapixel"] = row["seconds"] / (row["pixels"] * row["tissue"] / 1e6)
    slide, one = found["slide"], found["crop"]
    linear = slide["seconds_per_tissue_megapixel"] / one["seconds_per_tissue_megapixel"]
    out: dict[str, Any] = {"edge": edge, "kind": kind, **found, "linear": linear}
    if noise:
        every = found["every"]
        out |= {"faster": every["seconds"] / slide["seconds"], "same": every["labels"] == slide["labels"]}
    return out


def main() -> None:
    """Print what `compare` finds as JSON."""
    parser = argparse.ArgumentParser(description="Nuclei of a whole slide against a crop that fits into memory.")
    parser.add_argument("--edge", type=int, default=30_000, help="of the slide in pixels")
    parser.add_argument("--tissue", type=float, default=0.2, help="share of it that is tissue")
    parser.add_argument("--crop", type=int, default=CROP, help="edge of the crop")
    parser.add_argument("--kind", choices=get_args(Kind), default="zarr", help="of the file")
    parser.add_argument("--noise", type=float, default=0.0, help="of the camera around the tissue, in grey levels")
    parser.add_argument("--folder", default="", help="where the slide is made; it is removed afterwards")
    args = parser.parse_args()
    print(json.dumps(compare(**vars(args)), indent=2))


if __name__ == "__main__":
    main()
