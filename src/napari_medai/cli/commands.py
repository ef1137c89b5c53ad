"""The table of commands: what `medai --help` shows of each, and where it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HERE = "napari_medai.cli"


@dataclass(frozen=True)
class Command:
    """A row of the table of commands.

    Attributes
    ----------
    name : str
        What is typed.
    function : str
        ``"module:function"`` below this package; imported when the command is used.
    summary : str
        The first sentence of the function's documentation, which the list of commands shows without importing it.
    group : str
        ``"models"`` for ``medai models …``.
    """

    name: str
    function: str
    summary: str
    group: str = ""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, function = self.function.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"{_HERE}.{module}"), function)
        return found


COMMANDS = (
    Command(
        "info",
        "scans:info",
        "List the series in a file or folder: size, spacing, orientation, findings; and what was not read.",
    ),
    Command(
        "convert",
        "scans:convert",
        "Convert to the format of TARGET's suffix; into a folder, one NIfTI per series.",
    ),
    Command(
        "verify",
        "verify:verify",
        "Read RESULT back by two readers and compare it with a scan or another result; exit code 1 if it differs.",
    ),
    Command("denoise", "run:denoise", "Remove noise by a network that learns on the image itself."),
    Command("segment", "run:segment", "Label organs, tissue or single nuclei."),
    Command("classify", "run:classify", "Score an image and each of its slices."),
    Command("detect", "run:detect", "Find objects: centres, sizes and scores."),
    Command("explain", "run:explain", "Show where a network looked, as a heatmap on the scan."),
    Command(
        "batch",
        "run:batch",
        "Run a stage over many cases; what is done already is skipped, a failure stays with its case.",
    ),
    Command("echo", "pacs:echo", "Ask an archive (PACS) whether it is there and lets you in."),
    Command(
        "pull",
        "pacs:pull",
        "Fetch series from an archive (PACS) into a folder; what is there already is not fetched again.",
    ),
    Command("push", "pacs:push", "Send DICOM files to an archive (PACS); what it has already is left out."),
    Command(
        "samples",
        "system:samples",
        "Bring the sample images into the cache, once, while online; list where they are.",
    ),
    Command(
        "demo",
        "system:demo",
        "Run all five stages on the samples in a napari window and save what comes out.",
    ),
    Command("doctor", "system:doctor", "Print versions, devices, codecs, graphics and what is missing."),
    Command(
        "list",
        "models:models_list",
        "List the models that can be run now and what was added; with --available, what can be had.",
        "models",
    ),
    Command(
        "show",
        "models:models_show",
        "Show a model's card: licence, citation, intended use, training data, metrics, safety, hash. "
        "Downloads nothing.",
        "models",
    ),
    Command(
        "probe",
        "models:models_probe",
        "Say what a package is and what it needs, without running anything of it.",
        "models",
    ),
    Command(
        "add",
        "models_change:models_add",
        "Download a model of the catalogue, or copy a package from a disk; it is found by its id from then on.",
        "models",
    ),
    Command("remove", "models_change:models_remove", "Delete an added model with its files.", "models"),
    Command(
        "check",
        "models_change:models_check",
        "Compare a model's files with their hashes, load it, and run its own test data and a small image.",
        "models",
    ),
    Command(
        "trust",
        "models_change:models_trust",
        "Allow one package, as it is now, to run what it carries; any changed byte ends the permission.",
        "models",
    ),
)
