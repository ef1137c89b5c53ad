"""What a process of its own is given and gives back: arrays as .npy, everything else as JSON; never a pickle.

The one side writes what runners give; the other reads it as something that a program of unknown intent has written:
plain files only, the shapes and types that the stage calls for, no more bytes than those need.
"""

from __future__ import annotations

import os
import tokenize
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.results import Found, SliceScores
from napari_medai.models.package import open_plain

MOST_OBJECTS = 1_000_000
MOST_CLASSES = 10_000
MOST_KINDS = 1_000
LONGEST_TEXT = 300
_SMALL_BYTES = 1 << 20


def plain_text(text: object, longest: int = LONGEST_TEXT) -> str:
    """Text from elsewhere on one line, without control characters, cut to a length."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * longest])
    return " ".join(line.split())[:longest]


def write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array of numbers as ``name.npy``."""
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def write_result(folder: Path, result: Any) -> dict[str, Any]:
    """Write what a runner gave.

    Returns
    -------
    dict
        What is not in the arrays, for `read_result`.

    Raises
    ------
    ModelError
        It is nothing that a runner gives.
    """
    if isinstance(result, Found):
        kinds = sorted(set(result.labels))
        write_array(folder, "kinds", np.array([kinds.index(label) for label in result.labels], dtype=np.int64))
        for name in ("centres", "sizes", "scores"):
            write_array(folder, name, np.asarray(getattr(result, name), dtype=np.float64))
        return {"kinds": kinds}
    if isinstance(result, SliceScores):
        for name in ("probabilities", "slice_probabilities", "attention"):
            write_array(folder, name, np.asarray(getattr(result, name), dtype=np.float64))
        write_array(folder, "slice_index", np.asarray(result.slice_index, dtype=np.int64))
        return {}
    if isinstance(result, tuple) and len(result) == 2:  # heat, and the class that it speaks for
        write_array(folder, "array", np.asarray(result[0]))
        return {"target": str(result[1])}
    array = np.asarray(result)
    if array.dtype.kind not in "biuf":
        raise ModelError(f"The model gave {type(result).__name__}; an array of numbers was expected.")
    write_array(folder, "array", array)
    return {}


def read_result(folder: Path, stage: str, volume: Volume, classes: int, rest: dict[str, Any]) -> Any:
    """Read what `write_result` wrote, trusting nothing.

    Parameters
    ----------
    folder : Path
        Where the arrays lie.
    stage : str
        The stage decides what there has to be.
    volume : Volume
        What the runner was given.
    classes : int
        How many the model's description names; 0 if it names none.
    rest : dict
        What `write_result` gave, after it came over a pipe.

    Raises
    ------
    ModelError
        Something is missing, has another shape or type, or is not finite.
    """
    shape = volume.spatial_shape
    if stage in ("segment", "denoise", "explain"):
        labels = stage == "segment"
        array = _read(folder, "array", "iub" if labels else "f", shape)
        if labels and array.dtype.kind == "i" and array.min() < 0:
            raise _wrong("array", "labels below 0")
        if stage == "explain":
            return array, plain_text(rest.get("target", ""))
        return array
    if stage == "classify":
        slices = shape[0] if len(shape) == 3 else 1
        index = _read(folder, "slice_index", "i", (slices,), most=True)
        if len(index) and (index.min() < 0 or index.max() >= slices or np.any(np.diff(index) <= 0)):
            raise _wrong("slice_index", "slices that the image has not, or not in their order")
        width = (classes or MOST_CLASSES,)
        probabilities = _read(folder, "probabilities", "f", width, most=not classes)
        return SliceScores(
            probabilities=probabilities,
            slice_index=index,
            slice_probabilities=_read(folder, "slice_probabilities", "f", (len(index), len(probabilities))),
            attention=_read(folder, "attention", "f", (len(index),)),
        )
    if stage == "detect":
        kinds = rest.get("kinds")
        if not isinstance(kinds, list) or len(kinds) > MOST_KINDS or not all(isinstance(k, str) for k in kinds):
            raise _wrong("kinds", "no list of names")
        which = _read(folder, "kinds", "i", (MOST_OBJECTS,), most=True)
        count, ndim = len(which), len(shape)
        if count and (which.min() < 0 or which.max() >= len(kinds)):
            raise _wrong("kinds", "a kind without a name")
        names = [plain_text(kind) for kind in kinds]
        return Found(
            centres=_read(folder, "centres", "f", (count, ndim)),
            sizes=_read(folder, "sizes", "f", (count, ndim)),
            labels=[names[n] for n in which],
            scores=_read(folder, "scores", "f", (count,)),
        )
    raise ModelError(f"The stage {stage!r} cannot be run in a process of its own.")


def _read(folder: Path, name: str, kinds: str, shape: tuple[int, ...], most: bool = False) -> NDArray[Any]:
    """An array of finite numbers; with ``most``, ``shape`` is the longest that its one axis may be."""
    try:
        with open_plain(folder / f"{name}.npy") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            found, fortran, dtype = read(file)
            fits = found == shape if not most else len(found) == 1 and 0 <= found[0] <= shape[0]
            if not fits:
                raise _wrong(name, f"an array of {_times(found)}; {'at most ' if most else ''}{_times(shape)} expected")
            if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize > 8 or dtype.fields is not None:
                raise _wrong(name, f"numbers of type {dtype}")
            needed = prod(found) * dtype.itemsize
            if os.fstat(file.fileno()).st_size - file.tell() != needed:
                raise _wrong(name, "another number of bytes than it says")
            flat = np.frombuffer(bytearray(needed), dtype)
            if needed and file.readinto(flat.view(np.uint8).data) != needed:  # type: ignore[attr-defined]
                raise _wrong(name, "fewer bytes than it says")
    except OSError as error:
        raise _wrong(name, f"nothing ({error.strerror})") from error
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise _wrong(name, "no .npy file") from error
    array = flat.reshape(found, order="F" if fortran else "C")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _wrong(name, "numbers that are not finite")
    return array


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _wrong(name: str, what: str) -> ModelError:
    return ModelError(f"The process that ran the model gave {what} as {name!r}; it is not used.")
