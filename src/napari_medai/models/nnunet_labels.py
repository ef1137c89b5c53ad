"""nnU-Net's labels and regions, from ``dataset.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from napari_medai.core.errors import ModelError
from napari_medai.models.spec import Label

_MOST_LABELS = 65535


class LabelSet(BaseModel):
    """What the channels of the network's output mean.

    Attributes
    ----------
    heads : int
        Number of channels: labels with background, or regions.
    foreground : tuple of int
        Every label value but the background, ascending: what a cascade's second stage sees, a channel for each.
    region_values : tuple of int
        For each region, in the order of the channels, the label that is painted where it is found: later ones over
        earlier ones. Empty for labels, where the largest channel counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int
    foreground: tuple[int, ...]
    region_values: tuple[int, ...] = ()


def _entries(dataset: Mapping[str, Any], where: str) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Name -> its label values and whether they stand in a list; without the ignored label."""
    labels = dataset.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ModelError(f"{where}#labels: an object with names and their values is needed.")
    entries: dict[str, tuple[tuple[int, ...], bool]] = {}
    for name, value in labels.items():
        if name == "ignore":
            continue
        given = value if isinstance(value, list) else [value]
        if any(not str(v).isdecimal() or len(str(v)) > 9 for v in given):
            raise ModelError(f"{where}#labels::{one_line(name)[:80]}: whole numbers from 0 on are needed.")
        values = tuple(int(v) for v in given)
        if not values or min(values) < 0 or max(values) > _MOST_LABELS:
            raise ModelError(
                f"{where}#labels::{one_line(name)[:80]}: {list(values)[:8]} was found; labels go from 0 to 65535."
            )
        entries[name] = (values, isinstance(value, list))
    if entries.get("background") != ((0,), False):
        raise ModelError(f"{where}#labels::background: 0 is needed.")
    return entries


def read_labels(dataset: Mapping[str, Any], where: str) -> LabelSet:
    """The labels of a ``dataset.json``.

    Raises
    ------
    ModelError
        They are missing, not numbered from 0 without gaps, or the regions have no order.
    """
    entries = _entries(dataset, where)
    every = sorted({value for values, _ in entries.values() for value in values})
    foreground = tuple(value for value in every if value)
    if not any(len(values) > 1 for values, _ in entries.values()):
        if every != list(range(len(every))):
            raise ModelError(f"{where}#labels: {every[:12]} was found; labels are numbered from 0 without gaps.")
        return LabelSet(heads=len(every), foreground=foreground)
    regions = [values for values, _ in entries.values() if set(values) != {0}]
    order = dataset.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions):
        raise ModelError(f"{where}#regions_class_order: a list of {len(regions)} labels, one for a region, is needed.")
    if any(not isinstance(v, int) or isinstance(v, bool) or not 0 <= v <= _MOST_LABELS for v in order):
        raise ModelError(f"{where}#regions_class_order: whole numbers from 0 to 65535 are needed.")
    return LabelSet(heads=len(regions), foreground=foreground, region_values=tuple(order))


def one_line(text: object) -> str:
    """A package's text as one printable line of at most 300 characters."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:300] if text is not None else ""


def label_names(dataset: Mapping[str, Any], labels: LabelSet) -> tuple[Label, ...]:
    """What each value of the result is called.

    A region's value is what later regions, painted over it, have left: "whole tumour without tumour core".
    """
    entries = _entries(dataset, "dataset.json")
    if not labels.region_values:
        return tuple(
            Label(value=values[0], name=one_line(name)) for name, (values, _) in entries.items() if values != (0,)
        )
    regions = [(one_line(name), set(values)) for name, (values, _) in entries.items() if set(values) != {0}]
    names: dict[int, str] = {}
    for n, (value, (name, members)) in enumerate(zip(labels.region_values, regions, strict=True)):
        over = [(other, inner) for other, inner in regions[n + 1 :] if inner < members]
        outer = [other for other, inner in over if not any(inner < wider for _, wider in over)]
        names[value] = f"{name} without {', '.join(outer)}" if outer else name
    return tuple(Label(value=value, name=name) for value, name in sorted(names.items()) if value)
