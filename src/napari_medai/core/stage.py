"""What a stage is, and how a running one talks to whoever started it."""

from __future__ import annotations

import dataclasses
import importlib
import numbers
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_medai.core.errors import MedaiError, ParamsError
from napari_medai.core.plan import Plan

if TYPE_CHECKING:  # the command shows its help without numpy
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda", "mps"]


class Cancelled(MedaiError):
    """The person who started the run stopped it."""

    def __init__(self) -> None:
        super().__init__("Cancelled; nothing was changed.")


class Planned(Exception):
    """A run that was only to be planned has its plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(str(plan))
        self.plan = plan


class Progress:
    """Told by a running stage how far it is; asked by it whether to go on. Silent unless subclassed.

    Attributes
    ----------
    store : Path or None
        A folder (Zarr) where labels may be written as they are found; a run that was ended goes on from what is
        finished there. Default None: in memory.
    """

    store: Path | None = None

    def update(self, done: float, total: float, message: str = "") -> None:
        """Say that ``done`` of ``total`` units are done.

        Raises
        ------
        Cancelled
            The run is to stop.
        """
        self.check()

    def note(self, message: str) -> None:
        """Tell the user of something done in their place, e.g. a smaller tile after lack of memory."""

    def check(self) -> None:
        """Raise `Cancelled` if the run is to stop; called at least once per tile."""

    def planned(self, plan: Plan) -> None:
        """Hear how a network will go over the image, before its first tile; may raise `Planned` to leave it at that."""

    def partial(self, found: NDArray[Any], where: tuple[slice, ...]) -> None:
        """See labels as they are found.

        Parameters
        ----------
        found : (\\*spatial) integer array
            Of the whole image or frame, on its grid; it is written into further.
        where : tuple of slice
            What is new in it.
        """


class DryRun(Progress):
    """Stops a run as soon as it is planned.

    Raises
    ------
    Planned
        In `planned`.
    """

    def planned(self, plan: Plan) -> None:
        """See `Progress.planned`."""
        raise Planned(plan)


class Part(Progress):
    """A share of another progress: 0..total here is start..stop there, in fractions."""

    def __init__(self, whole: Progress, start: float, stop: float, message: str = "") -> None:
        self.whole, self.start, self.stop, self.message = whole, start, stop, message
        self.store = whole.store

    def update(self, done: float, total: float, message: str = "") -> None:
        """See `Progress.update`."""
        fraction = self.start + (self.stop - self.start) * (done / total if total else 1.0)
        self.whole.update(fraction, 1.0, message or self.message)

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self.whole.note(message)

    def check(self) -> None:
        """See `Progress.check`."""
        self.whole.check()

    def planned(self, plan: Plan) -> None:
        """See `Progress.planned`."""
        self.whole.planned(plan)

    def partial(self, found: NDArray[Any], where: tuple[slice, ...]) -> None:
        """See `Progress.partial`."""
        self.whole.partial(found, where)


def param(
    default: Any,
    label: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    advanced: bool = False,
) -> Any:
    """A field of a Params dataclass with what the panel and the shell need to show it.

    Parameters
    ----------
    default : bool, int, float or str
        Its value unless changed.
    label, help : str
        Name in the panel; one sentence for its tooltip and ``--help``.
    low, high, step : float, optional
        Closed range, and the step of the panel's spin box.
    advanced : bool
        Folded away in the panel.
    """
    metadata = {"label": label, "help": help, "low": low, "high": high, "step": step, "advanced": advanced}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters that all stages share; each stage adds its own.

    Raises
    ------
    ParamsError
        A value is of another type, out of its range or not one of the choices.
    """

    device: Device = param("auto", "Device", "Where the model runs; auto takes an accelerator if there is one.")
    tile: int = param(0, "Tile", "Edge of a tile in voxels; 0 lets the model decide.", low=0, high=4096, advanced=True)
    batch: int = param(0, "Batch", "Tiles per forward pass; 0 decides by device.", low=0, high=256, advanced=True)
    memory: int = param(
        0, "Memory", "Most memory to use, in MiB; 0 takes what is free.", low=0, high=2**24, advanced=True
    )
    override: bool = param(
        False, "Run anyway", "Run although the image is not what the model was made for; it is recorded.", advanced=True
    )

    def __post_init__(self) -> None:
        for spec in fields_of(type(self)):
            spec.check(getattr(self, spec.name))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


# type of a parameter -> what its values are instances of, and what that is in words
_KINDS: Mapping[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}


@dataclass(frozen=True)
class Field:
    """One parameter as the panel and the shell see it."""

    name: str
    type: type
    default: Any
    choices: tuple[Any, ...]
    label: str
    help: str
    low: float | None
    high: float | None
    step: float | None
    advanced: bool

    def check(self, value: Any) -> None:
        """Raise `ParamsError` if the value does not fit."""
        kinds, expected = _KINDS.get(self.type, (object, ""))
        # numpy's truth values are no kind of number and no bool
        if not isinstance(value, kinds) and not (self.type is bool and type(value).__name__.startswith("bool")):
            raise ParamsError(f"{self.name} is {value!r}, of type {type(value).__name__}; give {expected}.")
        if self.choices and value not in self.choices:
            raise ParamsError(f"{self.name} is {value!r}; use one of {', '.join(map(str, self.choices))}.")
        # put so that NaN fails
        if (self.low is not None and not value >= self.low) or (self.high is not None and not value <= self.high):
            raise ParamsError(f"{self.name} is {value}; it goes from {self.low} to {self.high}.")


def fields_of(params: type[Params]) -> tuple[Field, ...]:
    """The parameters of a Params class, in order; its own before the shared ones."""
    hints = typing.get_type_hints(params)
    shared = {f.name for f in dataclasses.fields(Params)}
    found = []
    for f in dataclasses.fields(params):
        hint = hints[f.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        kind = type(choices[0]) if choices else hint
        found.append(Field(f.name, kind, f.default, choices, **f.metadata))
    return tuple(sorted(found, key=lambda spec: spec.name in shared))


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages.

    Attributes
    ----------
    name : str
        The verb: ``"segment"``.
    title, summary : str
        For menus and docs.
    params : type of Params
        The parameters, defined once for panel, shell and script.
    default_model : str
        Id of the model it takes when none is named.
    function : str
        ``"module:function"`` of ``run(volume, model, params, progress) -> Result``; imported on first use,
        because it needs torch.
    menu : str
        The napari menu that offers it.
    """

    name: str
    title: str
    summary: str
    params: type[Params]
    default_model: str
    function: str
    menu: str

    def load(self) -> Callable[..., Any]:
        """Import the function that runs the stage."""
        module, _, function = self.function.partition(":")
        run: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return run
