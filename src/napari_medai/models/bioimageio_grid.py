"""How the tensors of a bioimage.io package lie on an image: axes of space, sizes that fit, what is cropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from pydantic import BaseModel, ConfigDict

from napari_medai.models.bioimageio_tensors import Tensor
from napari_medai.models.sizes import Size


class OutputGrid(BaseModel):
    """How an output lies on its input: ``size = input * scale + offset`` along each axis of space."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    scale: tuple[float, ...]
    offset: tuple[int, ...]


class TensorGrid(BaseModel):
    """What the tensors have in common.

    Attributes
    ----------
    letters : str
        Axes of space that the network works along: ``"yx"`` or ``"zyx"``.
    sizes : tuple of Size
        Which sizes inputs may have along them.
    halo : tuple of int
        Voxels of the input at each end whose output does not count.
    outputs : dict of str to OutputGrid
        Each output on the grid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    letters: str
    sizes: tuple[Size, ...]
    halo: tuple[int, ...]
    outputs: dict[str, OutputGrid]


def tensor_grid(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], used: Sequence[str]
) -> tuple[TensorGrid, list[tuple[str, str]]]:
    """The grid of a package's tensors, and what about them does not fit on one: place and reason.

    Parameters
    ----------
    inputs, outputs : sequence of Tensor
        Of the package.
    used : sequence of str
        Ids of the outputs that count.
    """
    letters = "".join(a for a in "zyx" if any(_extends(tensor, a) for tensor in inputs if not tensor.optional))
    refused = list(_odd_axes(inputs, "inputs", letters)) + list(_odd_axes(outputs, "outputs", letters))
    if letters not in ("yx", "zyx"):
        refused.append(("inputs", f"the axes of space are {letters or 'none'!r}; y and x, or z, y and x are needed"))
        letters = "yx"
    sizes, wrong = _sizes(inputs, letters)
    refused += wrong
    by_input = {tensor.id: tensor for tensor in inputs}
    grids: dict[str, OutputGrid] = {}
    halos = [0] * len(letters)
    for n, tensor in enumerate(outputs):
        if tensor.id not in used or not tensor.spatial:
            continue
        scales, offsets = [], []
        for k, letter in enumerate(letters):
            placed = _placed(tensor, letter, sizes[k], outputs, by_input)
            if placed is None:
                refused.append((f"outputs.{n}.axes", f"the size along {letter} does not follow from an input's"))
                placed = 1.0, 0
            axis = tensor.axis(letter)
            scale, offset = placed
            cropped = ceil(axis.halo / scale) + ceil(max(0, -offset) / (2 * scale)) if axis is not None else 0
            scales.append(scale)
            offsets.append(offset)
            halos[k] = max(halos[k], cropped)
        grids[tensor.id] = OutputGrid(scale=tuple(scales), offset=tuple(offsets))
    for k, size in enumerate(sizes):
        if size.kind == "fixed" and 2 * halos[k] >= size.least:
            refused.append(
                ("outputs", f"a halo of {halos[k]} leaves nothing of the {size.least} voxels along {letters[k]}")
            )
    return TensorGrid(letters=letters, sizes=tuple(sizes), halo=tuple(halos), outputs=grids), refused


def _extends(tensor: Tensor, letter: str) -> bool:
    """Whether a tensor has an axis of space that is more than one plane."""
    axis = tensor.axis(letter)
    return axis is not None and not (axis.size.kind == "fixed" and axis.size.least == 1)


def _odd_axes(tensors: Sequence[Tensor], where: str, letters: str) -> Iterator[tuple[str, str]]:
    for n, tensor in enumerate(tensors):
        if tensor.optional:
            continue
        for k, axis in enumerate(tensor.axes):
            single = axis.size.kind in ("fixed", "step") and axis.size.least == 1
            if where == "inputs" and axis.type in ("time", "index") and not single:
                yield (
                    f"{where}.{n}.axes.{k}",
                    f"an axis of {axis.type}; images here have none beside space and channels",
                )
        if where == "inputs" and "".join(a for a in "zyx" if _extends(tensor, a)) != letters:
            yield (
                f"{where}.{n}.axes",
                "its axes of space are not those of the other inputs; only images are put in here",
            )


def _sizes(inputs: Sequence[Tensor], letters: str) -> tuple[list[Size], list[tuple[str, str]]]:
    """The sizes along each axis that all inputs share."""
    sizes: list[Size] = []
    refused: list[tuple[str, str]] = []
    for letter in letters:
        found: list[Size] = []
        for n, tensor in enumerate(inputs):
            axis = tensor.axis(letter)
            if tensor.optional or axis is None:
                continue
            size = axis.size
            if size.kind == "reference" and (size.axis != letter or size.scale != 1 or size.offset):
                refused.append(
                    (f"inputs.{n}.axes", f"its size along {letter} is not that of the input {size.tensor!r}")
                )
            elif size.kind != "reference" and size not in found:
                found.append(size)
        if len(found) > 1:
            refused.append(("inputs", f"inputs of different sizes along {letter}"))
        sizes.append(found[0] if found else Size(kind="any"))
    return sizes, refused


def _placed(
    tensor: Tensor, letter: str, own: Size, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor], depth: int = 0
) -> tuple[float, int] | None:
    """Scale and offset of an output along an axis, relative to the input."""
    axis = tensor.axis(letter)
    if axis is None or depth > 4:
        return None
    size = axis.size
    if size.kind == "fixed" and own.kind == "fixed":
        if own.least % size.least == 0 or size.least % own.least == 0:
            return size.least / own.least, 0
        return 1.0, size.least - own.least
    if size.kind != "reference" or size.axis != letter or size.scale <= 0:
        return None
    if size.tensor in inputs:
        return size.scale, size.offset
    other = next((output for output in outputs if output.id == size.tensor), None)
    before = _placed(other, letter, own, outputs, inputs, depth + 1) if other is not None else None
    if before is None:
        return None
    return before[0] * size.scale, round(before[1] * size.scale) + size.offset
