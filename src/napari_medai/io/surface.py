"""Surfaces of labels in patient space: STL and OBJ.

Vertices are (x, y, z) in DICOM's LPS in millimetres, which the header says as 3D Slicer does (``SPACE=LPS``). OBJ
holds one named object for each label. STL knows no objects: all labels go into one file, and each triangle carries
its label's value in the two attribute bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.contours import Contours
from napari_medai.core.errors import ReadError, WriteError
from napari_medai.core.geometry import SAME_PLACE_MM, index_to_world, world_to_index
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.atomic import written

if TYPE_CHECKING:
    from napari_medai.io.verify import Saved

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
# Labels fit STL's two attribute bytes; the highest bit is taken for a colour by some programs.
_MOST_LABEL = (1 << 15) - 1


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface.

    Attributes
    ----------
    value : int
        Of the label.
    name : str
        What it is called.
    vertices : (n, 3) float64 array
        World (x, y, z) in LPS.
    faces : (m, 3) int array
        Corners of triangles, counter-clockwise seen from outside.
    """

    value: int
    name: str
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    @property
    def volume(self) -> float:
        """What it encloses in cubic units of the world; positive if the triangles face outwards."""
        corners = self.vertices[self.faces] - self.vertices.mean(axis=0)
        return float(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)

    @property
    def is_closed(self) -> bool:
        """Whether every edge is run along as often one way as the other."""
        edges = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        size = np.int64(len(self.vertices))
        there, back = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
        return bool(np.array_equal(np.sort(there), np.sort(back)))


def surfaces_of(labels: Volume, names: Mapping[int, str] | None = None) -> Iterator[Surface]:
    """The surface of each label, by marching cubes half way between voxels (Lewiner et al. 2003, scikit-image).

    It passes midway between the centres of voxels inside and outside, through the true affine, sheared and oblique
    ones too, and is closed where the label touches the border of the image. It is not smoothed.

    Parameters
    ----------
    labels : Volume
        Axes ``zyx`` or ``yx`` (one plane).
    names : mapping of int to str, optional
        By label value.

    Raises
    ------
    WriteError
        There is a time axis.
    """
    from scipy import ndimage
    from skimage.measure import marching_cubes

    if labels.axes not in ("zyx", "yx"):
        raise WriteError(f"A surface is made of one set of labels (z, y, x); these have the axes {labels.axes!r}.")
    array = labels.numpy() if labels.axes == "zyx" else labels.numpy()[np.newaxis]
    values = [int(v) for v in np.unique(array) if v != 0]
    order = np.zeros(array.shape, np.int32)
    order[array != 0] = np.searchsorted(values, array[array != 0]) + 1
    for value, box in zip(values, ndimage.find_objects(order), strict=True):
        inside = np.pad(array[box] == value, 1).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(inside, 0.5, method="lewiner", allow_degenerate=False)
        start = np.array([b.start for b in box]) - 1
        world = index_to_world(labels.affine, vertices.astype(np.float64) + start)[:, ::-1]
        surface = Surface(value, (names or {}).get(value, ""), world, faces.astype(np.int64))
        if surface.volume < 0:  # the affine mirrors
            surface = Surface(value, surface.name, world, surface.faces[:, ::-1])
        yield surface


def save_volume(volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write the surfaces of labels.

    Parameters
    ----------
    volume : Volume
        Labels, axes ``zyx`` or ``yx``.
    path : Path
        Ends in ``.stl`` (binary) or ``.obj``.
    record : mapping, optional
        ``label_names``.

    Raises
    ------
    WriteError
        There are no labels, there is a time axis, a label is too large for STL, or the system refused.
    """
    extra = dict(record or {})
    if not (volume.meta.get("is_labels") or extra.get("is_labels")):
        raise WriteError(f"{path.name} holds surfaces of labels; segment the image first, or save it as .nii.gz.")
    kept = records.record_of(volume, extra)
    names = {int(value): str(name) for value, name in kept.get("label_names", {}).items()}
    title = f"napari-medai, surfaces in {volume.units}. SPACE=LPS"
    surfaces = surfaces_of(volume, names)
    with written(path) as file:
        count = 0
        if path.suffix.lower() == ".stl":
            file.write(title.encode("ascii").ljust(80)[:80] + bytes(4))
            for surface in surfaces:
                if not 0 < surface.value <= _MOST_LABEL:
                    raise WriteError(f"Label {surface.value} does not fit STL; save as .obj.")
                file.write(_triangles(surface).tobytes())
                count += len(surface.faces)
            file.seek(80)
            file.write(np.array([count], "<u4").tobytes())
        else:
            file.write(f"# {title}\n".encode())
            for surface in surfaces:
                file.write(_object(surface, count).encode("utf-8"))
                count += len(surface.vertices)
        if not count:
            raise WriteError(f"{path.name} was not written: no voxel is labelled.")


def _triangles(surface: Surface) -> NDArray[Any]:
    found = np.zeros(len(surface.faces), _TRIANGLE)
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    found["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    found["corners"] = corners
    found["attribute"] = surface.value
    return found


def _object(surface: Surface, before: int) -> str:
    name = "_".join(surface.name.split()) or f"label_{surface.value}"
    vertices = "\n".join(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in surface.vertices.tolist())
    faces = "\n".join(f"f {a} {b} {c}" for a, b, c in (surface.faces + before + 1).tolist())
    return f"o {surface.value}_{name}\n{vertices}\n{faces}\n"


def read_surfaces(path: Path) -> list[Surface]:
    """Surfaces out of a file that we wrote, with trimesh.

    Raises
    ------
    ReadError
        trimesh cannot read it.
    """
    import trimesh

    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".stl":
                loaded = trimesh.exchange.stl.load_stl(file)
                labels = np.asarray(loaded["face_attributes"]["stl"]).astype(int)
                parts = [(int(v), "", loaded["vertices"], loaded["faces"][labels == v]) for v in np.unique(labels)]
            else:
                text = file.read().decode("utf-8")
                parts = [_parsed(trimesh, part) for part in text.split("\no ")[1:]]
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise ReadError(f"trimesh cannot read the surfaces in {path.name}: {type(error).__name__}.") from error
    return [_welded(*part) for part in parts]


def _parsed(trimesh: Any, part: str) -> tuple[int, str, Any, Any]:
    import io

    title, _, body = part.partition("\n")
    value, _, name = title.partition("_")
    faces = [[int(n) for n in line.split()[1:]] for line in body.splitlines() if line.startswith("f ")]
    first = min(map(min, faces))
    vertices = "\n".join(line for line in body.splitlines() if line.startswith("v "))
    corners = "\n".join("f " + " ".join(str(n - first + 1) for n in face) for face in faces)
    loaded = trimesh.load(io.StringIO(f"{vertices}\n{corners}\n"), file_type="obj", process=False, maintain_order=True)
    return int(value), name, loaded.vertices, loaded.faces


def _welded(value: int, name: str, vertices: Any, faces: Any) -> Surface:
    """Corners at one place become one vertex: STL stores each triangle with its own."""
    used = np.asarray(vertices, dtype=np.float64)[np.asarray(faces).ravel()]
    unique, at = np.unique(np.round(used, 4), axis=0, return_inverse=True)
    return Surface(value, name, unique, at.reshape(-1, 3))


def verify_surface(path: Path, expected: Saved | None) -> Iterator[tuple[str, bool, str]]:
    """Whether a file of surfaces encloses the labels that were saved.

    In the labels' own axes, a surface reaches half a voxel beyond the centres of the outermost voxels, exactly; its
    volume differs from that of the voxels by less than the voxels at its border.

    Yields
    ------
    tuple of str, bool, str
        What was asked, the answer, and what was found.
    """
    found = {surface.value: surface for surface in read_surfaces(path)}
    labels = expected.labels if isinstance(expected, Mask) else expected if isinstance(expected, Volume) else None
    if labels is None or isinstance(expected, Contours):
        for value, surface in found.items():
            outwards = surface.volume > 0 and surface.is_closed
            yield f"surface of label {value} is closed and faces outwards", outwards, f"{surface.volume / 1000:.3f} ml"
        return
    array = labels.numpy() if labels.axes == "zyx" else labels.numpy()[np.newaxis]
    present = [int(v) for v in np.unique(array) if v != 0]
    yield "a surface for each label", sorted(found) == present, f"{len(found)} surfaces for {len(present)} labels"
    step = np.asarray(labels.spacing)
    for value, surface in found.items():
        inside = array == value
        index = world_to_index(labels.affine, surface.vertices[:, ::-1])
        where = np.argwhere(inside)
        if not len(where):
            continue
        off = np.abs([index.min(axis=0) - where.min(axis=0) + 0.5, index.max(axis=0) - where.max(axis=0) - 0.5])
        yield (
            f"surface of label {value} lies on its voxels",
            bool((off * step).max() <= SAME_PLACE_MM),
            (f"{(off * step).max():.2f} mm off"),
        )
        border = len(where) - int(_eroded(inside).sum())
        ratio = surface.volume / labels.grid.voxel_volume
        yield (
            f"volume of the surface of label {value}",
            abs(ratio - len(where)) <= border and surface.is_closed,
            (f"{ratio:.1f} voxels for {len(where)}"),
        )


def verify_on(path: Path, scan: Volume) -> Iterator[tuple[str, bool, str]]:
    """Whether surfaces enclose the labels of another file, or lie on a scan; yields as `verify_surface`."""
    if scan.meta.get("is_labels"):
        yield from verify_surface(path, scan)
        return
    yield from verify_surface(path, None)
    vertices = np.concatenate([surface.vertices for surface in read_surfaces(path)])
    index = world_to_index(scan.affine, vertices[:, ::-1])
    margin = 0.5 + SAME_PLACE_MM / np.asarray(scan.grid.spacing)
    inside = (index >= -margin) & (index <= np.asarray(scan.grid.shape) - 1 + margin)
    share = float(inside.all(axis=1).mean())
    yield "inside the scan's field of view", share == 1, f"{share:.1%} of the vertices"


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(ndimage.binary_erosion(inside), dtype=bool)
