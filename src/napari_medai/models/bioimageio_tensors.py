"""Tensors of a bioimage.io description, of format 0.4 and 0.5, in one form.

Facts of the formats: bioimage.io's specification of model descriptions, versions 0.4.10 and 0.5.x.
"""

from __future__ import annotations

from math import floor
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from napari_medai.core.errors import ModelError
from napari_medai.models.sizes import LARGEST, Size

SPATIAL = "zyx"
_TYPES: dict[str, Any] = {
    "b": "batch",
    "t": "time",
    "i": "index",
    "c": "channel",
    "z": "space",
    "y": "space",
    "x": "space",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Axis(_Part):
    """One axis of a tensor: what it is called, and which sizes it may have.

    Attributes
    ----------
    id : str
        ``"batch"``, ``"channel"``, ``"z"``, ``"y"``, ``"x"``, or a name of the package's.
    type : str
        ``"batch"``, ``"channel"``, ``"space"``, ``"time"`` or ``"index"``.
    halo : int
        Voxels at each end of an output that are to be cropped.
    names : tuple of str
        Of channels, as far as the package tells them.
    """

    id: str
    type: Literal["batch", "channel", "space", "time", "index"]
    size: Size
    halo: int = 0
    names: tuple[str, ...] = ()


class Tensor(_Part):
    """An input or an output.

    Attributes
    ----------
    id : str
        Its name.
    axes : tuple of Axis
        In the network's order.
    dtype : str
        Type of its values, ``"float32"``.
    low, high : float, optional
        Range of its values, where the package says one.
    values : tuple of str
        Names of the values of a tensor of labels.
    operations : tuple of str
        Names of what is done before or after the network.
    pad : str
        How an input is padded: a mode of `numpy.pad`.
    optional : bool
        Whether an input may be left out.
    test, test_sha256 : str
        File of the array that the package gives to test with, and its hash.
    """

    id: str
    axes: tuple[Axis, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    pad: str = "symmetric"
    optional: bool = False
    test: str = ""
    test_sha256: str = ""

    def axis(self, id: str) -> Axis | None:
        """The axis with a name, if there is one."""
        return next((axis for axis in self.axes if axis.id == id), None)

    @property
    def spatial(self) -> str:
        """Letters of its spatial axes in the order z, y, x."""
        present = {axis.id for axis in self.axes if axis.type == "space"}
        return "".join(letter for letter in SPATIAL if letter in present)

    @property
    def channels(self) -> int:
        """Size of the channel axis; 1 without one."""
        axis = self.axis("channel")
        return axis.size.least if axis is not None else 1

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of its channels; its own where they are not told or say nothing."""
        axis = self.axis("channel")
        names = axis.names if axis is not None else ()
        if len(names) == 1 and (self.channels == 1 and names[0].lower() in ("channel0", "channel", "c0", "0")):
            return (self.id,)
        if len(names) == self.channels:
            return names
        return (self.id,) if self.channels == 1 else tuple(f"{self.id} {n}" for n in range(self.channels))


def read_inputs(content: dict[str, Any], new: bool) -> list[Tensor]:
    """Inputs of a description; ``new`` for format 0.5."""
    items = _mappings(content.get("inputs"), "inputs")
    tests = content.get("test_inputs")
    read = _input_05 if new else _input_04
    return [_with_test(read(item, f"inputs.{n}"), item, tests, n, new) for n, item in enumerate(items)]


def read_outputs(content: dict[str, Any], new: bool, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of a description; ``new`` for format 0.5."""
    items = _mappings(content.get("outputs"), "outputs")
    tests = content.get("test_outputs")
    found: list[Tensor] = []
    for n, item in enumerate(items):
        where = f"outputs.{n}"
        tensor = _output_05(item, where, content) if new else _output_04(item, where, inputs)
        found.append(_with_test(tensor, item, tests, n, new))
    return found


def _with_test(tensor: Tensor, item: dict[str, Any], tests: Any, n: int, new: bool) -> Tensor:
    if new:
        test = item.get("test_tensor")
        if isinstance(test, dict):
            return tensor.model_copy(
                update={"test": str(test.get("source", "")), "test_sha256": str(test.get("sha256") or "")}
            )
    elif isinstance(tests, list) and n < len(tests):
        return tensor.model_copy(update={"test": str(tests[n])})
    return tensor


def _input_04(item: dict[str, Any], where: str) -> Tensor:
    letters, shape = _letters(item, where), item.get("shape")
    axes = []
    for n, letter in enumerate(letters):
        if isinstance(shape, dict):
            least = _whole(_at(shape.get("min"), n, where), f"{where}.shape.min.{n}", 1)
            step = _whole(_at(shape.get("step"), n, where), f"{where}.shape.step.{n}", 0)
        else:
            least, step = _whole(_at(shape, n, where), f"{where}.shape.{n}", 1), 0
        size = Size(kind="step" if step else "fixed", least=least, step=step)
        axes.append(_axis_04(letter, size))
    return Tensor(**_common(item, where, "preprocessing"), axes=tuple(axes))


def _output_04(item: dict[str, Any], where: str, inputs: list[Tensor]) -> Tensor:
    letters, shape = _letters(item, where), item.get("shape")
    halos = item.get("halo") or [0] * len(letters)
    axes = []
    for n, letter in enumerate(letters):
        halo = _whole(_at(halos, n, where), f"{where}.halo.{n}", 0)
        if isinstance(shape, dict):
            size = _reference_04(shape, n, letter, where, inputs)
        else:
            size = Size(kind="fixed", least=_whole(_at(shape, n, where), f"{where}.shape.{n}", 1))
        axes.append(_axis_04(letter, size).model_copy(update={"halo": halo if _TYPES[letter] == "space" else 0}))
    return Tensor(**_common(item, where, "postprocessing"), axes=tuple(axes))


def _reference_04(shape: dict[str, Any], n: int, letter: str, where: str, inputs: list[Tensor]) -> Size:
    """``size = scale * reference + 2 * offset``; a scale of 0 names the size itself."""
    scale, offset = _at(shape.get("scale"), n, where), _at(shape.get("offset"), n, where)
    scale, total = float(scale or 0), 2 * float(offset or 0)
    if not -LARGEST <= total <= LARGEST or not 0 <= scale <= LARGEST:
        raise ModelError(f"{where}.shape: the scale {scale:g} or the offset {offset} is out of range.")
    name = str(shape.get("reference_tensor", ""))
    reference = next((tensor for tensor in inputs if tensor.id == name), None)
    if reference is None:
        raise ModelError(f"{where}.shape.reference_tensor: there is no input {name!r}.")
    own = _axis_04(letter, Size(kind="any"))
    other = reference.axis(own.id)
    if scale == 0 or other is None:
        return Size(kind="fixed", least=max(1, round(total)))
    if own.type != "space" and other.size.kind == "fixed":
        return Size(kind="fixed", least=max(1, floor(other.size.least * scale + total)))
    return Size(kind="reference", tensor=name, axis=own.id, scale=scale, offset=round(total))


def _axis_04(letter: str, size: Size) -> Axis:
    names = {"b": "batch", "c": "channel", "t": "time", "i": "index"}
    return Axis(id=names.get(letter, letter), type=_TYPES[letter], size=size)


def _letters(item: dict[str, Any], where: str) -> str:
    letters = item.get("axes")
    if not isinstance(letters, str) or not letters or set(letters) - set(_TYPES) or len(set(letters)) < len(letters):
        raise ModelError(f"{where}.axes: {letters!r}; each of the letters {', '.join(_TYPES)} at most once is needed.")
    return letters


def _input_05(item: dict[str, Any], where: str) -> Tensor:
    axes = [
        _axis_05(axis, f"{where}.axes.{n}", {}) for n, axis in enumerate(_mappings(item.get("axes"), f"{where}.axes"))
    ]
    pad = item.get("pad")
    mode = str(pad.get("mode", "symmetric")) if isinstance(pad, dict) else "symmetric"
    return Tensor(
        **_common(item, where, "preprocessing"),
        axes=tuple(axes),
        pad=mode if mode in ("symmetric", "reflect", "edge", "constant") else "symmetric",
        optional=item.get("optional") is True,
    )


def _output_05(item: dict[str, Any], where: str, content: dict[str, Any]) -> Tensor:
    scales = {}
    for side in ("input", "output"):
        for n, tensor in enumerate(_mappings(content.get(f"{side}s"), f"{side}s")):
            for axis in _mappings(tensor.get("axes"), f"{side}s.{n}.axes"):
                scales[str(tensor.get("id", side)), _id_05(axis)] = _positive(axis.get("scale", 1.0), f"{where}.axes")
    axes = [
        _axis_05(axis, f"{where}.axes.{n}", scales)
        for n, axis in enumerate(_mappings(item.get("axes"), f"{where}.axes"))
    ]
    return Tensor(**_common(item, where, "postprocessing", "output"), axes=tuple(axes))


def _id_05(axis: dict[str, Any]) -> str:
    kind = str(axis.get("type", ""))
    if kind in ("batch", "channel"):
        return kind
    return str(axis.get("id") or {"space": "x"}.get(kind, kind))


def _axis_05(axis: dict[str, Any], where: str, scales: dict[tuple[str, str], float]) -> Axis:
    kind = axis.get("type")
    if kind not in ("batch", "channel", "space", "time", "index"):
        raise ModelError(f"{where}.type: {kind!r}; batch, channel, space, time or index is needed.")
    id, size = _id_05(axis), axis.get("size")
    if kind == "space" and id not in ("x", "y", "z"):
        raise ModelError(f"{where}.id: a space axis called {id!r}; x, y or z is needed.")
    names = axis.get("channel_names")
    if kind == "batch":
        found = Size(kind="any")
    elif kind == "channel":
        if not isinstance(names, list) or not names or len(names) > 4096:
            raise ModelError(f"{where}.channel_names: a list of names is needed.")
        found = Size(kind="fixed", least=len(names))
    elif isinstance(size, int) and not isinstance(size, bool):
        found = Size(kind="fixed", least=_whole(size, f"{where}.size", 1))
    elif isinstance(size, dict) and "tensor_id" in size:
        tensor, other = str(size["tensor_id"]), str(size.get("axis_id", ""))
        own = _positive(axis.get("scale", 1.0), f"{where}.scale")
        found = Size(
            kind="reference",
            tensor=tensor,
            axis=other,
            scale=scales.get((tensor, other), own) / own,
            offset=_whole(size.get("offset", 0), f"{where}.size.offset", -LARGEST),
        )
    elif isinstance(size, dict) and "step" in size:
        least, step = _whole(size.get("min"), f"{where}.size.min", 1), _whole(size["step"], f"{where}.size.step", 1)
        found = Size(kind="step", least=least, step=step)
    elif isinstance(size, dict):
        found = Size(kind="any")
    else:
        raise ModelError(f"{where}.size: {size!r}; a number, min and step, or a reference is needed.")
    halo = _whole(axis.get("halo", 0), f"{where}.halo", 0)
    told = tuple(map(str, names)) if isinstance(names, list) else ()
    return Axis(id=id, type=kind, size=found, halo=halo, names=told)


def _common(item: dict[str, Any], where: str, operations: str, default: str = "input") -> dict[str, Any]:
    """What 0.4 and 0.5 say of a tensor apart from its axes."""
    data = item.get("data")
    data = data[0] if isinstance(data, list) and data else data
    data = data if isinstance(data, dict) else {}
    bounds = data.get("range") or item.get("data_range") or [None, None]
    low, high = bounds if isinstance(bounds, list) and len(bounds) == 2 else (None, None)
    steps = _mappings(item.get(operations) or [], f"{where}.{operations}")
    values = data.get("values")
    return {
        "id": str(item.get("id") or item.get("name") or default),
        "dtype": str(data.get("type") or item.get("data_type") or "float32"),
        "low": _finite(low),
        "high": _finite(high),
        "values": tuple(map(str, values[:4096])) if isinstance(values, list) else (),
        "operations": tuple(str(step.get("id") or step.get("name") or "") for step in steps),
    }


def _mappings(items: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(items, list) or len(items) > 64 or any(not isinstance(item, dict) for item in items):
        raise ModelError(f"{where}: a list of mappings is needed.")
    return items


def _at(items: Any, n: int, where: str) -> Any:
    if not isinstance(items, list) or n >= len(items):
        raise ModelError(f"{where}: one number for each axis is needed.")
    return items[n]


def _whole(value: Any, where: str, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= LARGEST:
        raise ModelError(f"{where}: {value!r}; a whole number from {lowest} to {LARGEST} is needed.")
    return value


def _positive(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise ModelError(f"{where}: {value!r}; a number above 0 is needed.")
    return float(value)


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e30 else None
