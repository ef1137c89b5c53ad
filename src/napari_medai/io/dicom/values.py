"""Which values the pixels of an image get: stored, rescaled, real-world or uptake values, as chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import InputError, ParamsError
from napari_medai.io.dicom.decoding import modality_table
from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.headers import Header
from napari_medai.io.dicom.realworld import RealWorld, file_mapping
from napari_medai.io.dicom.suv import uptake

# What `values=` and `--values` take.
VALUES: Mapping[str, str] = MappingProxyType(
    {
        "rescale": "what the modality's rescale or lookup table gives: Hounsfield units, Bq/ml …",
        "real-world": "what the real-world value mapping gives, or Philips' floating point values of MR",
        "display": "as rescale; Philips' word for it",
        "stored": "as stored in the file",
        "suv": "standardised uptake values of PET by body weight, g/ml",
    }
)
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
# Defined terms of Rescale Type (0028,1054), Units (0054,1001) and Dose Units (3004,0002), and units of Philips' files
_UNITS = {
    "HU": "HU", "BQML": "Bq/ml", "GML": "g/ml", "CNTS": "counts", "CPS": "counts/s", "PROPCNTS": "counts",
    "PROPCPS": "counts/s", "GY": "Gy", "RELATIVE": "relative", "CM2ML": "cm2/ml", "PCNT": "%", "UMOLML": "umol/ml",
    "MLMING": "ml/min/g", "MLMINML": "ml/min/ml", "1CM": "1/cm", "NONE": "",
}  # fmt: skip
_DIFFERENT = 1e-6


@dataclass(frozen=True, eq=False)
class Scale:
    """Stored value -> value: a lookup table of its first stored value and entries, or a slope and an intercept."""

    slope: float = 1.0
    intercept: float = 0.0
    table: tuple[int, NDArray[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """How the values of an image are made.

    Attributes
    ----------
    scales : list of Scale
        For each frame.
    meta : dict
        ``values`` (a name of `VALUES`), ``value_unit`` where it is known, ``suv``.
    findings : tuple of str
        What else there is, and what is doubtful.
    """

    scales: list[Scale]
    meta: dict[str, Any]
    findings: tuple[str, ...] = ()


def choose(frames: Sequence[Frame], values: str = "") -> Choice:
    """The values of an image's frames.

    Parameters
    ----------
    frames : sequence of Frame
        All of them.
    values : str
        A name of `VALUES`. Default: real-world values of Parametric Maps, else rescaled ones.

    Raises
    ------
    ParamsError
        The name is not known.
    InputError
        The header does not say what these values need.
    """
    if values and values not in VALUES:
        known = "\n".join(f"  {name}: {what}" for name, what in VALUES.items())
        raise ParamsError(f"There are no values {values!r}. Known are:\n{known}")
    lead = frames[0]
    if values == "stored":
        return Choice([Scale() for _ in frames], {"values": "stored"})
    tables: dict[str, Any] = {}
    rescaled = [_rescale(f, tables) for f in frames]
    if values == "suv":
        found = uptake([f.header for f in frames])
        scales = [Scale(s.slope * found.factor, s.intercept * found.factor, s.table) for s in rescaled]
        inputs = {"values": "suv", "value_unit": "g/ml", "suv": found.inputs}
        return Choice(scales, inputs, found.findings)
    parametric = lead.header.text("SOPClassUID") == PARAMETRIC_MAP
    if values == "real-world" or (parametric and not values):
        real = [_real(f) for f in frames]
        if all(real):
            return _real_world([r for r in real if r is not None])
        if values:
            raise InputError(
                "The header maps the stored values to no real-world values (Real World Value Mapping Sequence "
                f"(0040,9096), or Philips' scale slope), in {sum(r is None for r in real)} of {len(real)} frames."
            )
    meta: dict[str, Any] = {"values": values or "rescale"}
    unit = _unit(lead.header)
    meta |= {"value_unit": unit} if unit else {}
    meta |= _to_suv([f.header for f in frames])
    return Choice(rescaled, meta, _other(frames, rescaled))


def _to_suv(headers: Sequence[Header]) -> dict[str, float]:
    """What a model of uptake values has to multiply a PET series by, where the header tells."""
    if headers[0].text("Modality") != "PT":
        return {}
    try:
        return {"suv_factor": uptake(headers).factor}
    except InputError:
        return {}


def _rescale(frame: Frame, tables: dict[str, Any]) -> Scale:
    path = frame.header.path
    if path not in tables:
        tables[path] = modality_table(frame.header)
    return Scale(frame.slope, frame.intercept) if tables[path] is None else Scale(table=tables[path])


def _real(frame: Frame) -> RealWorld | None:
    return frame.real or file_mapping(frame.header, (frame.slope, frame.intercept))


def _real_world(real: list[RealWorld]) -> Choice:
    notes = []
    units = sorted({r.unit for r in real})
    if len(units) > 1:
        notes.append(f"The frames have real-world values of several units: {', '.join(u or 'none' for u in units)}.")
    if any(r.others for r in real):
        notes.append(f"The header maps the values to other units, too; the first ({units[0] or 'no unit'}) was used.")
    meta: dict[str, Any] = {"values": "real-world"}
    meta |= {"value_unit": real[0].unit} if real[0].unit else {}
    meta |= {"quantity": real[0].name} if real[0].name else {}
    return Choice([Scale(r.slope, r.intercept, r.table) for r in real], meta, tuple(notes))


def _unit(header: Header) -> str:
    modality = header.text("Modality")
    if modality == "PT":
        stated = header.text("Units")
    elif modality == "RTDOSE":
        stated = header.text("DoseUnits")
    else:
        stated = header.text("RescaleType") or ("HU" if modality == "CT" else "")
    stated = stated.upper()
    return _UNITS.get(stated, "" if stated in ("US", "UNSPECIFIED") else " ".join(stated.split())[:16].lower())


def _other(frames: Sequence[Frame], rescaled: Sequence[Scale]) -> tuple[str, ...]:
    """Says that there are real-world values, if they are not those that are shown; looked up for the first frame."""
    real = _real(frames[0])
    if real is None:
        return ()
    shown = rescaled[0]
    ends = (0.0, 1000.0)
    same = (
        real.table is None
        and shown.table is None
        and np.allclose(
            [v * real.slope + real.intercept for v in ends],
            [v * shown.slope + shown.intercept for v in ends],
            rtol=_DIFFERENT,
            atol=0,
        )
    )
    if same:
        return ()
    what = real.name or "real-world values"
    unit = f" in {real.unit}" if real.unit else ""
    return (f"The header also gives {what}{unit}, which differ from the rescaled values shown (values='real-world').",)
