"""What tells images of one place apart: echo, b-value, time, energy …, wherever scanners write it.

Units are those of the standard: ms for echo, inversion, trigger and repetition, degrees, s/mm2, kV, keV; times
of the clock in seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from napari_medai.io.dicom.headers import Header, items, number, numbers, text, value
from napari_medai.io.dicom.mosaic import csa_numbers

# Philips: b-value and gradient along right-left, anterior-posterior, feet-head. GE: kind of image. Siemens: gradient.
_PHILIPS_B, _PHILIPS_GRADIENT, _GE_KIND, _SIEMENS_GRADIENT = (
    0x20011003,
    (0x200510B0, 0x200510B1, 0x200510B2),
    0x0043102F,
    0x0019100E,
)
_GE_KINDS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")
_GE_B, _SIEMENS_B, _SIEMENS_CSA = 0x00431039, 0x0019100C, 0x00291010
# Virtual monoenergetic images of spectral CT say their energy in Image Type only: "MONO_40KEV", "MONOE 70 keV".
_KEV = re.compile(r"(\d{2,3}(?:\.\d+)?)[ _]?KEV|KEV[ _]?(\d{2,3}(?:\.\d+)?)")


def macro(group: Any, shared: Any, keyword: str) -> Any:
    """The first item of a functional group of a frame, or of the one shared by all (PS3.3 C.7.6.16); None if absent."""
    for source in (group, shared):
        if source is not None:
            found = items(source, keyword)
            if len(found):
                return found[0]
    return None


def kind_of(header: Header, group: Any, shared: Any) -> str:
    """What sort of image a frame is: the later values of Image Type, ``DERIVED``, and the part of a complex number."""
    words, part = _image_type(header, group, shared)
    if not part and header.text("Manufacturer").upper().startswith("GE"):
        ge = number(header.fields, _GE_KIND)
        part = _GE_KINDS[int(ge)] if ge is not None and ge in (0, 1, 2, 3) else ""
    derived = ("DERIVED",) if words[:1] == ("DERIVED",) else ()
    return "\\".join(w for w in (*derived, *(_KEV.sub("", w) for w in words[2:]), part) if w)


def _image_type(header: Header, group: Any, shared: Any) -> tuple[tuple[str, ...], str]:
    for keyword in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
        found = macro(group, shared, keyword)
        if found is not None:
            words = tuple(word.strip().upper() for word in text(found, "FrameType").split("\\"))
            return words, text(found, "ComplexImageComponent").upper()
    return header.texts("ImageType"), header.text("ComplexImageComponent").upper()


def marks_of(header: Header, index: int, group: Any, shared: Any) -> dict[str, float]:
    """The quantities of a frame by name; those that are absent or not finite are left out.

    Parameters
    ----------
    header : Header
        Of the file.
    index : int
        Frame number in the file, from 0.
    group, shared : item or None
        Functional groups of the frame, and of all frames.
    """
    found: dict[str, float | None] = {
        "t": header.number("TemporalPositionIndex") or header.number("TemporalPositionIdentifier"),
        "b": _b_value(header),
        "echo": header.number("EchoTime"),
        "inversion": header.number("InversionTime"),
        "trigger": header.number("TriggerTime"),
        "flip": header.number("FlipAngle"),
        "kvp": header.number("KVP"),
        "kev": _kev(header, group, shared),
        "thickness": header.number("SliceThickness"),
        "frame": float(index),
    } | _own(header)
    gradient = _gradient(header)
    if group is not None or shared is not None:
        gradient = _functional(found, group, shared) or gradient
    found |= zip(("gz", "gy", "gx"), gradient, strict=False)
    return {name: v for name, v in found.items() if v is not None and math.isfinite(v)}


def _own(header: Header) -> dict[str, float | None]:
    return {
        "acquisition": header.number("AcquisitionNumber"),
        "time": _clock(header.text("AcquisitionTime"), header.text("ContentTime")),
        "moment": _moment(header.text("AcquisitionDateTime")),
        "instance": header.number("InstanceNumber"),
        "reference": _scaled(header.number("FrameReferenceTime"), 1e-3),
    }


class OwnMarks(Mapping[str, float]):
    """The marks of a slice that differs from another in `OF_EACH_SLICE` alone; read when they are needed first.

    Parameters
    ----------
    header : Header
        Of the slice.
    others : mapping of str to float
        The marks of the other.
    """

    def __init__(self, header: Header, others: Mapping[str, float]) -> None:
        self._header, self._others = header, others
        self._made: dict[str, float] | None = None

    def _marks(self) -> dict[str, float]:
        if self._made is None:
            own = _own(self._header)
            stated = {name: v for name, v in own.items() if v is not None and math.isfinite(v)}
            self._made = {name: v for name, v in self._others.items() if name not in own} | stated
        return self._made

    def __getitem__(self, name: str) -> float:
        return self._marks()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._marks())

    def __len__(self) -> int:
        return len(self._marks())


def _functional(found: dict[str, float | None], group: Any, shared: Any) -> tuple[float, ...]:
    """What the functional groups say in the place of the header; the gradient is returned."""
    content = macro(group, shared, "FrameContentSequence")
    if content is not None:
        found["t"] = number(content, "TemporalPositionIndex")
        found["acquisition"] = number(content, "FrameAcquisitionNumber")
        found["stack"] = number(content, "StackID")
        when = _moment(text(content, "FrameAcquisitionDateTime") or text(content, "FrameReferenceDateTime"))
        found["moment"] = when if when is not None else found["moment"]
        for n, v in enumerate(numbers(content, "DimensionIndexValues")):
            found[f"dimension {n}"] = v
    for name, sequence, keyword in (
        ("segment", "SegmentIdentificationSequence", "ReferencedSegmentNumber"),
        ("echo", "MREchoSequence", "EffectiveEchoTime"),
        ("flip", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
        ("inversion", "MRModifierSequence", "InversionTimes"),
        ("b", "MRDiffusionSequence", "DiffusionBValue"),
        ("trigger", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        ("kvp", "CTXRayDetailsSequence", "KVP"),
        ("offset", "TemporalPositionSequence", "TemporalPositionTimeOffset"),
        ("thickness", "PixelMeasuresSequence", "SliceThickness"),
    ):
        item = macro(group, shared, sequence)
        stated = None if item is None else number(item, keyword)
        if stated is not None:
            found[name] = stated
    diffusion = macro(group, shared, "MRDiffusionSequence")
    direction = (
        next(iter(items(diffusion, "DiffusionGradientDirectionSequence")), None) if diffusion is not None else None
    )
    return () if direction is None else _turned(numbers(direction, "DiffusionGradientOrientation"))


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _kev(header: Header, group: Any, shared: Any) -> float | None:
    if header.text("Modality") != "CT":
        return None
    for word in _image_type(header, group, shared)[0]:
        match = _KEV.search(word)
        if match:
            return float(match[1] or match[2])
    return None


def _b_value(header: Header) -> float | None:
    standard = header.number("DiffusionBValue")
    if standard is not None:
        return standard
    maker = header.text("Manufacturer").upper()
    if maker.startswith("GE"):
        found = text(header.fields, _GE_B).split("\\")[0]
        # GE adds 10^9 to the b value of multi-shell protocols
        return float(int(found) % 100_000) if found.lstrip("-").isdigit() else None
    if maker.startswith("SIEMENS"):
        found = text(header.fields, _SIEMENS_B)
        if found.isdigit():
            return float(found)
        in_csa = csa_numbers(_csa(header), b"B_value")
        return in_csa[0] if in_csa and in_csa[0] >= 0 else None
    return number(header.fields, _PHILIPS_B) if maker.startswith("PHILIPS") else None


def _csa(header: Header) -> bytes:
    found = value(header.fields, _SIEMENS_CSA)
    return found if isinstance(found, bytes) else b""


def _gradient(header: Header) -> tuple[float, ...]:
    """Direction of the diffusion gradient in the patient, (z, y, x); empty if there is none."""
    standard = header.numbers("DiffusionGradientOrientation")
    maker = header.text("Manufacturer").upper()
    if len(standard) == 3:
        return _turned(standard)
    if maker.startswith("SIEMENS"):
        return _turned(
            numbers(header.fields, _SIEMENS_GRADIENT) or csa_numbers(_csa(header), b"DiffusionGradientDirection")
        )
    if maker.startswith("PHILIPS"):
        stated = tuple(number(header.fields, tag) for tag in _PHILIPS_GRADIENT)
        return _turned(tuple(v for v in stated if v is not None))
    # GE writes its gradient along the axes of the image, not of the patient.
    return ()


def _turned(xyz: tuple[float, ...]) -> tuple[float, ...]:
    # Some scanners give b = 0 an impossible direction.
    return xyz[::-1] if len(xyz) == 3 and all(abs(v) <= 1.001 for v in xyz) else ()


def _clock(*written: str) -> float | None:
    """Seconds of the day of the first DICOM time that is one, HHMMSS.FFFFFF."""
    for clock in (one.replace(":", "") for one in written):
        if len(clock) >= 6 and clock[:6].isdigit():
            try:
                return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + float(clock[4:])
            except ValueError:
                continue
    return None


def _moment(written: str) -> float | None:
    """Seconds of a DICOM date and time, YYYYMMDDHHMMSS.FFFFFF&ZZXX; only differences of them are ever shown."""
    digits = re.match(r"(\d{4})(\d\d)(\d\d)(\d{6}(?:\.\d+)?)", written)
    clock = _clock(digits[4]) if digits else None
    if digits is None or clock is None:
        return None
    try:
        return date(int(digits[1]), int(digits[2]), int(digits[3])).toordinal() * 86400 + clock
    except ValueError:
        return None
