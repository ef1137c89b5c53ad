"""Our own packages: ``medai-model.yaml``, a `ModelSpec` as YAML, with its weights (safetensors) beside it.

The description is data: it is read by YAML's safe loader, without aliases and tags; networks are named out of tables
that were reviewed, their arguments are plain values that are checked, and the weights are arrays whose sha256 stands
in the description. Nothing of a package is ever executed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from napari_medai.core.errors import ModelError
from napari_medai.models.inside import file_inside, file_sha256
from napari_medai.models.spec import ModelSpec
from napari_medai.models.yaml_file import read_yaml
from napari_medai.nets import problems

NAME = "medai-model.yaml"
# The first line of files that are written here
_HEAD = "# A model for napari-medai: what it accepts, how its input is prepared and what it gives.\n"

# Runners that work on the weights of a package alone; others belong to one package or framework
RUNNERS = ("network", "onnx", "program", "nuclei", "micronuclei", "quality", "blobs3d", "self")
# What is found out here and not said by a package about itself
_OURS = ("source", "path", "safety", "needs")
# Runners of exported networks: what their files say is looked up by the module of their source
_EXPORTED = {"onnx": "napari_medai.models.onnx", "program": "napari_medai.models.programs"}
_STAGES = ("denoise", "segment", "classify", "detect")

MOST_BYTES = 2**20
# Reading more takes seconds
MOST_VALUES = 10_000
DEEPEST = 24
# Weights up to this size are hashed when a package is looked at; larger ones when they are read
MOST_HASHED = 2**28
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def recognise(path: Path) -> bool:
    """Whether it is ``medai-model.yaml`` or a folder that holds one."""
    return path.name == NAME or (path / NAME).is_file()


def probe(path: Path) -> ModelSpec:
    """The description of a package; its weights are there, in the package, and are those that it means.

    Raises
    ------
    ModelError
        The message names the field, or says what is wrong with the weights.
    """
    file = path if path.name == NAME else path / NAME
    spec = read_manifest(file)
    if spec.runner in _EXPORTED:
        exported: ModelSpec = importlib.import_module(_EXPORTED[spec.runner]).from_manifest(spec, file.parent)
        return exported
    if spec.runner != "self":
        check_weights(file.parent, spec)
    return spec.model_copy(update={"path": file.parent, "source": "manifest"})


def read_manifest(path: Path) -> ModelSpec:
    """Read a ``medai-model.yaml``, without looking at the weights.

    Parameters
    ----------
    path : Path
        The file, or the folder that holds it.

    Raises
    ------
    ModelError
        The file is missing, is no such YAML, or a field is wrong; the message names the field.
    """
    file = path / NAME if path.is_dir() else path
    content = parse_yaml(file)
    said = [name for name in _OURS if name in content]
    if said:
        raise ModelError(
            f"{file.name} says {', '.join(said)}, which a package cannot say about itself; remove the field."
        )
    try:
        # as JSON is: a list is a tuple, but text is no number
        spec = ModelSpec.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(f"The model description {file.name} is not valid: {wrong}.") from error
    found = list(_wrong(spec))
    if found:
        raise ModelError(f"The model description {file.name} is not valid: {'; '.join(found)}.")
    return spec


def write_manifest(spec: ModelSpec, folder: Path) -> Path:
    """Write ``medai-model.yaml`` into a folder, with the sha256 of the weights that lie there.

    Returns
    -------
    Path
        The file. It takes its name when it is complete.

    Raises
    ------
    ModelError
        The weights are not there, or a field is wrong.
    """
    if spec.weights:
        digest = file_sha256(file_inside(folder, spec.weights))
        spec = spec.model_copy(update={"sha256": digest})
    wrong = list(_wrong(spec))
    if wrong:
        raise ModelError(f"The description of {spec.id!r} is not valid: {'; '.join(wrong)}.")
    content = spec.model_dump(mode="json", exclude_defaults=True, exclude=set(_OURS))
    partial, file = folder / f"{NAME}.part", folder / NAME
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    partial.write_text(_HEAD + text, encoding="utf-8")
    partial.replace(file)
    return file


def parse_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: plain values, without aliases, tags of Python, or a key that stands twice.

    Raises
    ------
    ModelError
        It cannot be read, is larger than a mebibyte, nested too deeply, or is no such YAML; the message says where.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path.name} is larger than {MOST_BYTES >> 20} MiB; a description is a few kilobytes.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"The model description {path.name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is not text in UTF-8 (byte {error.start}).") from error
    content = read_yaml(text, path.name, most_values=MOST_VALUES, deepest=DEEPEST)
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds {type(content).__name__}, not a mapping of fields to values.")
    return content


def check_weights(folder: Path, spec: ModelSpec) -> Path:
    """The file of weights of a package, which is arrays only, inside the package, and has the sha256 that is said.

    Weights larger than `MOST_HASHED` are hashed when they are read.

    Raises
    ------
    ModelError
        Any of it does not hold.
    """
    file = file_inside(folder, spec.weights)
    if not _SHA256.fullmatch(spec.sha256):
        raise ModelError(f"The description of {spec.id!r} has no sha256 of {spec.weights}; add its 64 hex digits.")
    if not is_safetensors(file):
        raise ModelError(f"The weights {spec.weights} are not a safetensors file; save them by safetensors.torch.")
    if file.stat().st_size <= MOST_HASHED:
        digest = file_sha256(file)
        if digest != spec.sha256:
            raise ModelError(
                f"The weights {spec.weights} have the sha256 {digest[:16]}…; the description says "
                f"{spec.sha256[:16]}…. The file is damaged or of another version."
            )
    return file


def is_safetensors(path: Path) -> bool:
    """Whether a file's bytes are safetensors (the length of a JSON header, then the header); its name says nothing."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _wrong(spec: ModelSpec) -> Iterator[str]:
    """What the types alone do not tell, as ``field: reason``."""
    if not _ID.fullmatch(spec.id):
        yield f"id: {spec.id!r} has more than letters, digits, dots, hyphens and underscores"
    if spec.stage not in _STAGES:
        yield f"stage: {spec.stage!r} is none of {', '.join(_STAGES)}"
    if spec.runner not in RUNNERS:
        yield f"runner: {spec.runner!r} is none of {', '.join(RUNNERS)}, which run the weights of a package"
    if bool(spec.network) != (spec.runner not in (*_EXPORTED, "self")):
        yield f"network: {spec.network!r} does not go with the runner {spec.runner!r}"
    if spec.network and not spec.weights:
        yield "weights: a network needs a file of weights"
    if spec.network:
        yield from problems(spec.network, spec.arguments)
    if spec.accepts.orientation and not _is_orientation(spec.accepts.orientation):
        yield f"accepts.orientation: {spec.accepts.orientation!r} is not one letter each of R/L, A/P and S/I"
    tensors = spec.details.get("tensors", {})
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for pair in tensors.items() for name in pair):
        yield "details.tensors: not a mapping of names to names"
    elif len(set(tensors.values())) != len(tensors):
        yield "details.tensors: two tensors go to one place"
    values = [label.value for label in spec.gives.labels]
    if len(set(values)) != len(values):
        yield "gives.labels: a value stands twice"
    if any(not -(2**31) <= value < 2**31 for value in values):
        yield "gives.labels: a value does not fit into 32 bits"
    prepare = spec.prepare
    if prepare.normalise in ("percentile", "range") and not prepare.low < prepare.high:
        yield f"prepare.low: {prepare.low:g} is not below prepare.high, {prepare.high:g}"
    if prepare.normalise == "percentile" and not 0 <= prepare.low < prepare.high <= 100:
        yield "prepare.low, prepare.high: percentiles lie in 0..100"
    if not prepare.scaled[0] < prepare.scaled[1]:
        yield "prepare.scaled: the first value is not below the second"
    ways = [prepare.size, prepare.conform, prepare.object_diameter, prepare.isotropic]
    if sum(bool(way) for way in ways) > 1 or (prepare.size and prepare.spacing_mm):
        yield "prepare: only one of size, conform, isotropic and object_diameter, and no spacing_mm with size"


def _is_orientation(letters: str) -> bool:
    pairs = ["RL", "AP", "SI"]
    return len(letters) == 3 and all(sum(letter in pair for letter in letters) == 1 for pair in pairs)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Lists of plain values on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = all(not isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)
