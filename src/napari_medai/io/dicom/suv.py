"""Standardised uptake values of PET: the factor from what is stored to SUV by body weight, and its inputs.

After the vendor-neutral pseudocode for SUV calculation of the Quantitative Imaging Biomarkers Alliance (RSNA QIBA,
FDG-PET/CT profile, appendix G; qibawiki.rsna.org, "Standardized Uptake Value (SUV)").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from napari_medai.core.errors import InputError
from napari_medai.io.dicom.details import details
from napari_medai.io.dicom.headers import Header, items, number, text

# Philips (private creator "Philips PET Private Group"): counts -> SUV, counts -> Bq/ml
_TO_SUV, _TO_ACTIVITY = 0x70531000, 0x70531009
# GE (GEMS_PETD_01): when the scan began, untouched where a workstation rewrote the series' time
_GE_BEGIN = 0x0009100D
# No dose given to a person is below this many becquerel; some systems write megabecquerel.
_SMALLEST_DOSE = 1e5
# After more half-lives than this the times do not belong together.
_MOST_HALF_LIVES = 10


@dataclass(frozen=True)
class Uptake:
    """From rescaled values to SUV.

    Attributes
    ----------
    factor : float
        SUV (g/ml) = rescaled value * factor.
    inputs : dict
        What the factor was computed from, for ``Volume.meta["suv"]``.
    findings : tuple of str
        What is doubtful.
    """

    factor: float
    inputs: dict[str, Any]
    findings: tuple[str, ...] = ()


def uptake(headers: Sequence[Header]) -> Uptake:
    """The factor of a PET series.

    Parameters
    ----------
    headers : sequence of Header
        Of its files.

    Raises
    ------
    InputError
        It is not PET, or something that the formula needs is missing; the message lists it.
    """
    lead = headers[0]
    if lead.text("Modality") != "PT":
        raise InputError("Standardised uptake values (values='suv') are defined for PET; this series is not.")
    units = lead.text("Units").upper()
    if units == "GML":
        kind = text(details(lead), "SUVType").upper() or "BW"
        note = () if kind == "BW" else (f"The stored uptake values are not by body weight but {kind}.",)
        return Uptake(1.0, {"factor": 1.0, "type": kind, "formula": "stored as g/ml"}, note)
    if units == "CNTS":
        direct = _positive(number(lead.fields, _TO_SUV))
        if direct is not None:
            formula = "SUV = counts * Philips SUV scale factor (7053,1000)"
            return Uptake(direct, {"factor": direct, "type": "BW", "formula": formula})
        activity = _positive(number(lead.fields, _TO_ACTIVITY))
        if activity is None:
            raise InputError(
                "The PET values are counts, and the header has no factor for them: Philips' SUV scale factor "
                "(7053,1000) or activity concentration factor (7053,1009) is needed."
            )
        return _by_weight(headers, activity)
    if units == "BQML":
        return _by_weight(headers, 1.0)
    raise InputError(
        f"The PET values are in {units or 'unknown units'}; uptake values can be computed from Bq/ml, g/ml or counts."
    )


def _positive(found: float | None) -> float | None:
    return found if found is not None and math.isfinite(found) and found > 0 else None


def _by_weight(headers: Sequence[Header], to_activity: float) -> Uptake:
    more = details(headers[0])
    tracer = next(iter(items(more, "RadiopharmaceuticalInformationSequence")), None)
    weight = _positive(number(more, "PatientWeight"))
    dose = None if tracer is None else _positive(number(tracer, "RadionuclideTotalDose"))
    half_life = None if tracer is None else _positive(number(tracer, "RadionuclideHalfLife"))
    correction = text(more, "DecayCorrection").upper()
    wanted = {
        "Patient's Weight (0010,1030)": weight,
        "Radionuclide Total Dose (0018,1074)": dose,
        "Radionuclide Half Life (0018,1075)": half_life,
        "Decay Correction (0054,1102) START or ADMIN": correction if correction in ("START", "ADMIN") else None,
    }
    findings: list[str] = []
    seconds: float | None = 0.0
    if correction == "START":
        seconds, notes = _decay_seconds(headers, more, tracer)
        findings += notes
        wanted["the times of injection (0018,1078 or 0018,1072) and scan"] = seconds
    missing = [name for name, found in wanted.items() if found is None]
    if missing or weight is None or dose is None or half_life is None or seconds is None:
        raise InputError("Uptake values cannot be computed; the header lacks: " + ", ".join(missing) + ".")
    if seconds < 0 or seconds > _MOST_HALF_LIVES * half_life:
        raise InputError(
            f"Uptake values cannot be computed: by the header the scan began {seconds:.0f} s after the injection, "
            f"with a half-life of {half_life:.0f} s."
        )
    corrected = text(more, "CorrectedImage").upper().split("\\")
    lacking = [word for word in ("ATTN", "DECY") if word not in [c.strip() for c in corrected]]
    if lacking:
        findings.append(f"Corrected Image does not list {' and '.join(lacking)}; uptake values need these corrections.")
    if dose < _SMALLEST_DOSE:
        findings.append(f"A dose of {dose:g} Bq is too small for a person; it may be in MBq, the uptake then too high.")
    left = dose * 2 ** (-seconds / half_life)
    factor = to_activity * weight * 1000 / left
    if not math.isfinite(factor):
        raise InputError("Uptake values cannot be computed: weight and dose in the header give no finite factor.")
    inputs = {
        "weight_kg": weight,
        "dose_bq": dose,
        "half_life_s": half_life,
        "decay_seconds": seconds,
        "decay_correction": correction,
        "factor": factor,
        "type": "BW",
        "formula": "SUV = activity (Bq/ml) * weight (kg) * 1000 / (dose (Bq) * 2^(-decay (s) / half-life (s)))",
    }
    inputs |= {"activity_factor": to_activity} if to_activity != 1 else {}
    return Uptake(factor, inputs, tuple(findings))


def _decay_seconds(headers: Sequence[Header], more: Any, tracer: Any) -> tuple[float | None, list[str]]:
    """From injection to the moment that the images are corrected to."""
    if tracer is None:
        return None, []
    injected = _moment(text(tracer, "RadiopharmaceuticalStartDateTime"))
    clock = _clock(text(tracer, "RadiopharmaceuticalStartTime"))
    series = _moment(text(more, "SeriesDate") + text(more, "SeriesTime"))
    acquired = _earliest(headers, more)
    notes: list[str] = []
    begun = series
    if begun is None or (acquired is not None and begun > acquired):
        # a derived series carries the time of its own making
        begun = _moment(text(more, _GE_BEGIN)) or acquired
        if begun is not None:
            notes.append("The series' time is later than its images'; the begin of the scan is taken from these.")
    if begun is None:
        return None, notes
    if injected is None and clock is not None:
        injected = begun.replace(hour=0, minute=0, second=0, microsecond=0) + clock
        if injected > begun:  # given before midnight
            injected -= timedelta(days=1)
    return (None if injected is None else (begun - injected).total_seconds()), notes


def _earliest(headers: Sequence[Header], more: Any) -> datetime | None:
    day = text(more, "AcquisitionDate") or text(more, "SeriesDate")
    found = [m for m in (_moment(day + h.text("AcquisitionTime")) for h in headers if h.text("AcquisitionTime")) if m]
    return min(found, default=None)


def _clock(written: str) -> timedelta | None:
    moment = _moment("20000101" + written) if written else None
    return None if moment is None else moment - datetime(2000, 1, 1)


def _moment(written: str) -> datetime | None:
    digits = written.replace(":", "").split("+")[0].split("-")[0].strip()
    whole, _, part = digits.partition(".")
    try:
        found = datetime.strptime(whole[:14].ljust(14, "0"), "%Y%m%d%H%M%S") if len(whole) >= 10 else None
        return None if found is None else found + timedelta(seconds=float(f"0.{part}") if part else 0.0)
    except ValueError:
        return None
