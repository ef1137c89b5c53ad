"""How well `brain` agrees with deepbet's own program, and with itself on the same head lying differently.

``python -m benchmarks.brain`` prints a table; ``--card`` writes it into the model's card. The head is the sample
``head_mr`` (Colin27). deepbet's own program takes part where it can be imported (``pip install deepbet``).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

import napari_medai as medai
from napari_medai.core.geometry import Reorientation, to_ras
from napari_medai.core.volume import Volume
from napari_medai.engine.resample import resample
from napari_medai.models.deepbet import CARD

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks of one shape."""
    return float(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))


def segmented(volume: Volume) -> Volume:
    """Labels of the brain on the volume's grid."""
    return medai.segment(volume, "brain", device="cpu").labels


def tilted(volume: Volume, degrees: tuple[float, float, float], edge: int = 240) -> Volume:
    """The same head scanned on a cubic grid turned by angles about z, y and x; linear interpolation."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()
    centre = np.asarray(volume.affine)[:3, :3] @ ((np.asarray(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine = turn @ np.asarray(volume.affine)
    affine[:3, 3] = centre - affine[:3, :3] @ np.full(3, (edge - 1) / 2)
    return volume.replace(array=moved(volume, affine, (edge,) * 3), affine=affine)


def moved(volume: Volume, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The pixels of a volume at the places of another grid, 0 outside."""
    there = np.linalg.inv(volume.affine) @ affine
    pixels = volume.numpy().astype(np.float32)
    out = ndimage.affine_transform(pixels, there[:3, :3], there[:3, 3], output_shape=shape, order=1)
    return np.asarray(out, dtype=np.float32)


def thick(volume: Volume, millimetres: float) -> Volume:
    """Axial slices averaged to a greater thickness."""
    grid = volume.grid
    shape = (round(grid.shape[0] * grid.spacing[0] / millimetres), *grid.shape[1:])
    affine = np.array(volume.affine)
    step = grid.shape[0] / shape[0]
    affine[:3, 3] += affine[:3, 0] * (step - 1) / 2
    affine[:3, 0] *= step
    return volume.replace(array=resample(volume.numpy(), shape), affine=affine)


def by_deepbet(volume: Volume) -> NDArray[np.bool_] | None:
    """The mask of deepbet's own program on the volume's array, or none if it cannot be imported."""
    try:
        import nibabel
        from deepbet import BrainExtraction
    except ImportError as error:
        print(f"deepbet's own program is left out: {error}")
        return None
    image = nibabel.Nifti1Image(volume.numpy().astype(np.float32).transpose(2, 1, 0), to_ras(volume.affine))
    _, mask, _ = BrainExtraction(no_gpu=True).run(image)
    return np.asarray(mask.dataobj).transpose(2, 1, 0) > 0


def compared(head: Volume) -> Iterator[tuple[str, str]]:
    """Rows of the table: what was compared, and the result."""
    begin = time.process_time()
    reference = segmented(head)
    seconds = time.process_time() - begin
    mask = reference.numpy() > 0
    size = " x ".join(map(str, head.shape))
    yield f"brain volume, {size} voxels of 1 mm", f"{mask.sum() * head.grid.voxel_volume / 1000:.0f} ml"
    yield "seconds of CPU time, all threads together", f"{seconds:.1f}"
    yield "peak memory of the process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    for name, volume in [
        ("as it is", head),
        ("slices of 6 mm", thick(head, 6.0)),
        ("tilted", tilted(head, (10, 0, 15))),
    ]:
        own = by_deepbet(volume)
        if own is None:
            break
        ours = mask if volume is head else segmented(volume).numpy() > 0
        yield f"Dice with deepbet's own program, {name}", f"{dice(ours, own):.4f}"
    for name, turn in {
        "sagittal, flipped": Reorientation((2, 0, 1), (True, False, True)),
        "coronal, flipped": Reorientation((1, 0, 2), (False, True, False)),
    }.items():
        turned = head.reoriented(turn)
        back = turned.replace(array=segmented(turned).numpy()).canonical().numpy() > 0
        yield f"Dice with the unturned head, {name}", f"{dice(back, mask):.4f}"
    for millimetres in (3.0, 6.0):
        volume = thick(head, millimetres)
        truth = resample(mask.astype(np.float32), volume.shape) > 0.5
        yield (
            f"Dice with the unturned head, slices of {millimetres:g} mm",
            f"{dice(segmented(volume).numpy() > 0, truth):.4f}",
        )
    for degrees in ((10, 0, 15), (20, 20, 30), (0, 0, 40)):
        volume = tilted(head, degrees)
        labels = segmented(volume)
        back = moved(labels, np.asarray(head.affine), head.shape) > 0.5
        angles = ", ".join(map(str, degrees))
        yield f"Dice with the unturned head, tilted by {angles} degrees about z, y, x", f"{dice(back, mask):.4f}"


def main() -> None:
    """Print the table and, with ``--card``, write it into the card."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", action="store_true", help="write the table into the model card")
    wish = parser.parse_args()
    head = medai.sample("head_mr").canonical()
    lines = ["| Colin27 (T1, 1 mm) | |", "|---|---|"]
    for what, result in compared(head):
        lines.append(f"| {what} | {result} |")
        print(lines[-1], flush=True)
    if wish.card:
        path = Path(CARD) / "card.md"
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        table = "\n".join(lines)
        path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
