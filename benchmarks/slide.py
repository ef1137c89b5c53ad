"""Nuclei of a whole slide: time and peak memory against a crop that fits into memory.

::

    python -m benchmarks.slide                 # 30,000 x 30,000, a fifth of it tissue
    python -m benchmarks.slide --edge 12000 --tissue 1.0

The slide is made of a real fluorescence image (`micronuclei_slide`, 768 x 869 pixels, 16 bits), mirrored and turned
from field to field so that nuclei meet at every seam. Outside of the tissue it is 0, as where a scanner did not look.
Every run is in a process of its own, whose peak resident size is taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import fresh, watched

# The largest crop that is held in memory as a whole
CROP = 4096
_CHUNK = 1024
# Around which there is tissue, in shares of the slide; a crop is taken around the first
_CENTRES = ((0.3, 0.3), (0.35, 0.7), (0.7, 0.5))


def fields(edge: int, tissue: float = 1.0, seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """A real field of nuclei, (y, x), and which way round it lies in each cell of a slide; -1 is not tissue.

    Parameters
    ----------
    edge : int
        Of the slide in pixels.
    tissue : float
        Share of the cells that are tissue: those nearest to one of three centres.
    seed : int
        Of the order.
    """
    from napari_medai.samples import sample

    image = np.asarray(sample("micronuclei_slide").array)
    # without the camera's offset, or the edge of the tissue would be a step that no scanner makes
    field = np.clip(image.astype(np.int32) - int(np.percentile(image, 1)), 0, None).astype(np.uint16)
    down, across = -(-edge // field.shape[0]), -(-edge // field.shape[1])
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:down, :across]
    centres = np.array(_CENTRES) * [down, across]
    distance = np.min([np.hypot(y + 0.5 - a, x + 0.5 - b) for a, b in centres], axis=0)
    nearest = np.argsort(distance.ravel(), kind="stable")[: round(tissue * distance.size)]
    ways = np.full(distance.size, -1, np.int8)
    ways[nearest] = rng.integers(0, 4, len(nearest))
    return field, ways.reshape(down, across)


def rows_of(field: NDArray[np.uint16], ways: NDArray[np.int8], row: int, edge: int) -> NDArray[np.uint16]:
    """One row of cells, (height of a cell, edge)."""
    turned = [field, field[::-1], field[:, ::-1], field[::-1, ::-1]]
    parts = [np.zeros_like(field) if way < 0 else turned[way] for way in ways[row]]
    return np.concatenate(parts, axis=1)[:, :edge]


def make_zarr(folder: Path, edge: int, tissue: float = 1.0, levels: int = 4) -> tuple[Path, float]:
    """A slide as OME-Zarr 0.5, levels halved each time; its folder, and the share of its pixels that are tissue."""
    import zarr

    field, ways = fields(edge, tissue)
    path = folder / f"slide-{edge}-{tissue:g}.ome.zarr"
    group = zarr.open_group(path, mode="w")
    arrays = [
        group.create_array(
            str(n),
            shape=(-(-edge // 2**n),) * 2,
            chunks=(_CHUNK, _CHUNK),
            dtype="uint16",
            fill_value=0,
            dimension_names=("y", "x"),
        )
        for n in range(levels)
    ]
    cell, count = field.shape[0], 0
    ready, start = np.zeros((0, edge), np.uint16), 0
    for row in range(len(ways)):
        ready = np.concatenate([ready, rows_of(field, ways, row, edge)[: edge - row * cell]])
        last = row == len(ways) - 1
        height = len(ready) if last else len(ready) // _CHUNK * _CHUNK
        if height:
            part, ready = ready[:height], ready[height:]
            count += np.count_nonzero(part)
            for n, array in enumerate(arrays):
                thin = part[:: 2**n, :: 2**n]
                array[start // 2**n : start // 2**n + len(thin)] = thin
            start += height
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [0.5 * 2**n] * 2}]}
        for n in range(levels)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path, count / edge**2


def make_tiff(path: Path, pixels: NDArray[Any], tile: int = 256, um: float = 0.5) -> None:
    """A pyramid of two levels as OME-TIFF, in tiles that are compressed."""
    import tifffile

    options: dict[str, Any] = {"tile": (tile, tile), "compression": "zlib", "photometric": "minisblack"}
    size = {"PhysicalSizeX": um, "PhysicalSizeY": um, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        file.write(pixels, subifds=1, metadata={"axes": "YX", **size}, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)


def make_dicom(path: Path, pixels: NDArray[np.uint16], tile: int = 256, um: float = 0.5, sparse: bool = False) -> None:
    """A level of a slide as DICOM VL whole slide microscopy, in a new folder; ``sparse`` leaves tiles of 0 out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    places, tiles = [], []
    for y in range(0, pixels.shape[0], tile):
        for x in range(0, pixels.shape[1], tile):
            whole = np.zeros((tile, tile), np.uint16)
            part = pixels[y : y + tile, x : x + tile]
            whole[: part.shape[0], : part.shape[1]] = part
            if not sparse or whole.any():
                places.append((y + 1, x + 1))
                tiles.append(whole)
    made = item(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6", SOPInstanceUID=generate_uid(), StudyInstanceUID="1.2.826.0.1.1",
        SeriesInstanceUID=generate_uid(), Modality="SM", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        TotalPixelMatrixRows=pixels.shape[0], TotalPixelMatrixColumns=pixels.shape[1], NumberOfFrames=len(tiles),
        Rows=tile, Columns=tile, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0, TotalPixelMatrixFocalPlanes=1, NumberOfOpticalPaths=1,
        DimensionOrganizationType="TILED_SPARSE" if sparse else "TILED_FULL", InstanceNumber=1,
        OpticalPathSequence=[item(OpticalPathIdentifier="1")],
        SharedFunctionalGroupsSequence=[
            item(PixelMeasuresSequence=[item(PixelSpacing=[um / 1000] * 2, SliceThickness=0.001)])
        ],
    )  # fmt: skip
    if sparse:
        made.PerFrameFunctionalGroupsSequence = [
            item(
                PlanePositionSlideSequence=[
                    item(
                        RowPositionInTotalImagePixelMatrix=y, ColumnPositionInTotalImagePixelMatrix=x,
                        ZOffsetInSlideCoordinateSystem=0.0,
                    )
                ],
                OpticalPathIdentificationSequence=[item(OpticalPathIdentifier="1")],
            )
            for y, x in places
        ]  # fmt: skip
    made.PixelData = np.stack(tiles).tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.mkdir(exist_ok=True)
    made.save_as(path / "level.dcm", enforce_file_format=True)


def segment(path: str, crop: int = 0, diameter: float = 0.0) -> dict[str, Any]:
    """Outline the nuclei of a slide, or of a crop out of its tissue; run in a fresh process by `compare`."""
    import napari_medai as medai

    volume = medai.open(path).replace(modality="fluorescence")
    if crop:
        y, x = (min(max(0, round(_CENTRES[0][0] * n) - crop // 2), n - crop) for n in volume.shape)
        array = np.asarray(volume.array[y : y + crop, x : x + crop])
        volume = volume.replace(array=array, meta={})
    else:
        array = None
    started = time.perf_counter()
    with watched() as region:
        mask = medai.segment(volume, "nuclei", diameter=diameter)
    return {
        "pixels": int(np.prod(volume.shape)),
        "tissue": float(np.count_nonzero(array) / array.size) if array is not None else None,
        "objects": len(mask.table["label"]),
        "tiles": mask.provenance.tiles,
        "seconds": time.perf_counter() - started,
        "peak_rss_mb": region.peak_mb,
        "notes": list(mask.provenance.notes),
    }


def compare(edge: int = 30_000, tissue: float = 0.2, crop: int = CROP, folder: str = "") -> dict[str, Any]:
    """The whole slide and a crop of it, each in a fresh process.

    Returns
    -------
    dict
        ``slide`` and ``crop`` as `segment` tells them, ``linear``: seconds of the slide over those of the crop for as
        much tissue.
    """
    with tempfile.TemporaryDirectory(dir=folder or None) as where:
        path, share = make_zarr(Path(where), edge, tissue)
        one = fresh("benchmarks.slide:segment", path=str(path), crop=min(crop, edge))
        whole = fresh("benchmarks.slide:segment", path=str(path))
    whole = {**whole, "tissue": share}
    for row in (one, whole):
        row["seconds_per_tissue_megapixel"] = row["seconds"] / (row["pixels"] * row["tissue"] / 1e6)
    ratio = whole["seconds_per_tissue_megapixel"] / one["seconds_per_tissue_megapixel"]
    return {"edge": edge, "slide": whole, "crop": one, "linear": ratio}


def main() -> None:
    """Print what `compare` finds as JSON."""
    parser = argparse.ArgumentParser(description="Nuclei of a whole slide against a crop that fits into memory.")
    parser.add_argument("--edge", type=int, default=30_000, help="of the slide in pixels")
    parser.add_argument("--tissue", type=float, default=0.2, help="share of it that is tissue")
    parser.add_argument("--crop", type=int, default=CROP, help="edge of the crop")
    parser.add_argument("--folder", default="", help="where the slide is made; it is removed afterwards")
    args = parser.parse_args()
    print(json.dumps(compare(args.edge, args.tissue, args.crop, args.folder), indent=2))


if __name__ == "__main__":
    main()
