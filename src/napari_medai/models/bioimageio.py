"""Packages of bioimage.io, formats 0.4 and 0.5: what they say, without the library that runs them, and offline.

From the description a shorter one is made that holds only what is needed to run the package: tensors, operators and
one format of weights, with files inside the package. The engine gives that one to bioimageio.core, which thereby never
sees an address, another format of weights, or a file that was not checked.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from napari_medai.core.errors import DependencyError, ModelError
from napari_medai.models.bioimageio_grid import tensor_grid
from napari_medai.models.bioimageio_meaning import meaning, modality
from napari_medai.models.bioimageio_tensors import Tensor, read_inputs, read_outputs
from napari_medai.models.inside import file_inside, file_sha256
from napari_medai.models.onnx_file import read_onnx
from napari_medai.models.spec import Accepts, Gives, ModelSpec, Need, Prepare, Tiling
from napari_medai.models.yaml_file import read_yaml

NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml", "bioimageio.yml")
# Descriptions are a few kilobytes
MOST_BYTES = 2**18
# Values of a description once its aliases are written out
MOST_VALUES = 20_000
DEEPEST = 32

_FORMAT = re.compile(r"0\.([45])\.\d{1,3}")
# Operators of the formats that bioimageio.core brings itself
_OPERATORS = frozenset(
    {"binarize", "clip", "ensure_dtype", "fixed_zero_mean_unit_variance", "scale_linear", "scale_mean_variance"}
    | {"scale_range", "sigmoid", "softmax", "zero_mean_unit_variance"}
)
# Operators that need a package beside it
_OUTSIDE = {"stardist_postprocessing": "stardist", "cellpose_flow_dynamics": "cellpose"}
# First the format that is data; the others are programs
_ORDER: tuple[tuple[str, Literal["python", "torchscript"] | None], ...] = (
    ("onnx", None),
    ("pytorch_state_dict", "python"),
    ("torchscript", "torchscript"),
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def recognise(path: Path) -> bool:
    """Whether it is a folder with a description of bioimage.io, or such a description."""
    file = _description(path)
    if file is None:
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(MOST_BYTES + 1)
    except OSError:
        return False
    return re.search(rb"(?m)^[\"']?format_version[\"']?\s*:", head) is not None and b"weights" in head


def probe(path: Path) -> ModelSpec:
    """The description of a package; its weights are hashed, and an ONNX file is looked into.

    Raises
    ------
    ModelError
        The description cannot be read, or a field is wrong; the message names it.
    """
    file = _description(path)
    if file is None:
        raise ModelError(f"{path.name!r} holds none of {', '.join(NAMES)}.")
    content = _load(file)
    version = str(content.get("format_version", ""))
    match = _FORMAT.fullmatch(version)
    if match is None or content.get("type", "model") != "model":
        raise ModelError(
            f"{file.name}: format_version {version!r} and type {content.get('type', 'model')!r}; models of the formats "
            "0.4 and 0.5 are opened. Newer releases of the package, or bioimageio.spec, bring it to 0.5."
        )
    new = match[1] == "5"
    inputs = read_inputs(content, new)
    outputs = read_outputs(content, new, inputs)
    if not inputs or not outputs:
        raise ModelError(f"{file.name}: at least one input and one output are needed.")
    if len({tensor.id for tensor in (*inputs, *outputs)}) < len(inputs) + len(outputs):
        raise ModelError(f"{file.name}: two inputs or outputs have one name.")
    return _spec(file, content, new, inputs, outputs)


def describe(path: Path, **answers: Any) -> ModelSpec:
    """A package with what a person knows better than its tags and names say.

    Parameters
    ----------
    path : Path
        The package.
    **answers
        ``stage``: ``"denoise"`` if its first output is an image; ``kind``: ``"instances"`` if each piece of a
        probability map is an object; ``labels``: names of the labels.

    Raises
    ------
    ModelError
        As `probe`, or an answer is none of these or does not fit.
    """
    spec = probe(path)
    wrong = sorted(set(answers) - {"stage", "kind", "labels"})
    if wrong:
        raise ModelError(f"{spec.title!r} says itself its {', '.join(wrong)}; stage, kind and labels can be answered.")
    stage, kind = str(answers.get("stage") or spec.stage), str(answers.get("kind") or spec.gives.kind)
    names = answers.get("labels") or ()
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else [str(name) for name in names]
    if stage != spec.stage and (stage != "denoise" or spec.stage != "segment"):
        raise ModelError(f"{spec.title!r} is for the stage {spec.stage!r} and cannot be run as {stage!r}.")
    if stage == "denoise":
        return spec.model_copy(update={"stage": stage, "gives": Gives(kind="image")})
    if kind != spec.gives.kind and (kind != "instances" or spec.details["decode"].get("kind") != "threshold"):
        raise ModelError(f"{spec.title!r} gives {spec.gives.kind}, which cannot be made into {kind}.")
    labels = spec.gives.labels
    if names:
        if len(names) != len(labels):
            raise ModelError(f"{spec.title!r} has {len(labels)} labels; {len(names)} names were given.")
        labels = tuple(label.model_copy(update={"name": name}) for label, name in zip(labels, names, strict=True))
    if kind == "instances":
        labels = ()
    return spec.model_copy(update={"gives": spec.gives.model_copy(update={"kind": kind, "labels": labels})})


def _spec(file: Path, content: dict[str, Any], new: bool, inputs: list[Tensor], outputs: list[Tensor]) -> ModelSpec:
    tags = tuple(str(tag) for tag in content.get("tags") or [] if isinstance(tag, str))
    use = meaning(tags, outputs)
    grid, odd = tensor_grid(inputs, outputs, use.outputs)
    needs = [Need(where=f"{file.name}#{where}", why=why) for where, why in odd]
    if use.refused:
        needs.append(Need(where=f"{file.name}#outputs", why=use.refused))
    package = _Package(file, content, new)
    weights, files, found = package.weights()
    needs += found
    for side, name in (("inputs", "preprocessing"), ("outputs", "postprocessing")):
        for place, operator in _operators(content, side, name):
            need, source = package.operator(place, operator)
            needs += need
            files |= source
    images = [tensor for tensor in inputs if not tensor.optional]
    channels = sum(tensor.channels for tensor in images)
    title = _text(content.get("name")) or file.parent.name
    details = {
        "file": file.name,
        "format": str(content["format_version"]),
        "weights": weights,
        "description": _shorter(content, new, weights, use.outputs, images),
        "inputs": [tensor.model_dump(mode="json") for tensor in images],
        "outputs": [tensor.model_dump(mode="json") for tensor in outputs],
        "used": list(use.outputs),
        "grid": grid.model_dump(mode="json"),
        "decode": use.decode,
        "files": files,
    }
    main = str((_mapping(content.get("weights")).get(weights) or {}).get("source", "")) if weights else ""
    return ModelSpec(
        id=_slug(title),
        title=title,
        summary=_text(content.get("description")) or title,
        stage=use.stage,
        version=_text(content.get("version")) or "1",
        accepts=Accepts(
            ndim=(3,) if len(grid.letters) == 3 else (2,),
            modality=modality(tags),
            rgb=channels == 3 and len(images) == 1,
            min_size=1,
            channels=max(1, channels),
            channel_names=tuple(name for tensor in images for name in tensor.channel_names) if channels > 1 else (),
        ),
        prepare=Prepare(normalise="none"),
        gives=use.gives,
        tiling=Tiling(multiple=1, halo=min(1024, max(grid.halo))),
        runner="bioimageio",
        weights=main if main in files else "",
        sha256=files.get(main, ""),
        licence=_text(content.get("license")) or "not given",
        citation=_citation(content),
        training_data=_text(_mapping(content.get("training_data")).get("id")),
        details=details,
        path=file.parent,
        source="bioimageio",
        safety="code" if any(need.capability for need in needs) else "config",
        needs=tuple(needs),
    )


class _Package:
    """The files of a package: which are needed, whether they are there, and whether they are those that it means."""

    def __init__(self, file: Path, content: dict[str, Any], new: bool) -> None:
        self.file, self.folder, self.new = file, file.parent, new
        self.said = _mapping(content.get("weights"))

    def weights(self) -> tuple[str, dict[str, str], list[Need]]:
        """Format of weights that is run, its files with their sha256, and what keeps it from being run."""
        for name, capability in _ORDER:
            entry = self.said.get(name)
            if not isinstance(entry, dict):
                continue
            where = f"{self.file.name}#weights.{name}"
            files, needs = self._hashed(entry.get("source"), entry.get("sha256"), where)
            if name == "onnx" and files and not needs:
                more, found = self._onnx(next(iter(files)), where)
                files, needs = files | more, needs + found
            if name == "pytorch_state_dict":
                more, found = self._architecture(entry, where)
                files, needs = files | more, needs + found
            elif capability is not None:
                why = f"{_text(entry.get('source'))} is a TorchScript program; there are no ONNX weights"
                needs.append(Need(capability=capability, where=where, why=why))
            return name, files, needs
        there = ", ".join(sorted(map(str, self.said))) or "none"
        why = f"there are weights for {there}; onnx, pytorch_state_dict or torchscript is needed"
        return "", {}, [Need(where=f"{self.file.name}#weights", why=why)]

    def operator(self, place: str, operator: dict[str, Any]) -> tuple[list[Need], dict[str, str]]:
        """What an operator before or after the network needs, and its files."""
        name, where = str(operator.get("id") or operator.get("name") or ""), f"{self.file.name}#{place}"
        if name in _OPERATORS:
            return [], {}
        if name in _OUTSIDE:
            package = _OUTSIDE[name]
            if importlib.util.find_spec(package) is not None:
                return [], {}
            return [Need(where=where, why=f"the operator {name!r} needs the package {package}; install it")], {}
        if name != "custom" or not self.new:
            return [Need(where=where, why=f"the operator {name!r} is not known")], {}
        files, needs = self._hashed(operator.get("source"), operator.get("sha256"), where)
        why = f"a processing step of its own: {_text(operator.get('callable'))} in {_text(operator.get('source'))}"
        return [*needs, Need(capability="python", where=where, why=why)], files

    def _onnx(self, source: str, where: str) -> tuple[dict[str, str], list[Need]]:
        try:
            found = read_onnx(self.folder / source)
        except (ModelError, DependencyError) as error:
            return {}, [Need(where=where, why=str(error).rstrip("."))]
        return dict(found.external), [Need(where=f"{source}#{place}", why=why) for place, why in found.refused]

    def _architecture(self, entry: dict[str, Any], where: str) -> tuple[dict[str, str], list[Need]]:
        """Files and need of the program that builds a network."""
        architecture = entry.get("architecture")
        files: dict[str, str] = {}
        needs: list[Need] = []
        if isinstance(architecture, dict):
            source, name = architecture.get("source"), _text(architecture.get("callable"))
            digest, library = architecture.get("sha256"), _text(architecture.get("import_from"))
        else:
            source, _, name = _text(architecture).rpartition(":")
            digest, library = entry.get("architecture_sha256"), "" if source else _text(architecture)
        if source:
            files, needs = self._hashed(source, digest, f"{where}.architecture")
            why = f"the program {_text(source)} builds the network ({name}); there are no ONNX weights"
        else:
            why = f"the network is imported from {library!r}; there are no ONNX weights"
        needs.append(Need(capability="python", where=f"{where}.architecture", why=why))
        return files, needs

    def _hashed(self, source: Any, digest: Any, where: str) -> tuple[dict[str, str], list[Need]]:
        """A file inside the package with its sha256, compared with the one that the description says."""
        name = _text(source)
        try:
            found = file_sha256(file_inside(self.folder, name))
        except ModelError as error:
            return {}, [Need(where=f"{where}.source", why=str(error).rstrip("."))]
        said = _text(digest).lower()
        if said and said != found:
            why = (
                f"{name} has the sha256 {found[:16]}…, the description says {said[:16]}…: damaged or of another version"
            )
            return {name: found}, [Need(where=f"{where}.sha256", why=why)]
        return {name: found}, []


def _operators(content: dict[str, Any], side: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for n, tensor in enumerate(content[side]):
        for k, operator in enumerate(tensor.get(name) or []):
            yield f"{side}.{n}.{name}.{k}", operator


def _shorter(
    content: dict[str, Any], new: bool, weights: str, used: tuple[str, ...], inputs: list[Tensor]
) -> dict[str, Any]:
    """The description that bioimageio.core is given: what is needed to run, and nothing that leads anywhere."""
    keep = ("id", "axes", "data", "pad") if new else ("name", "axes", "data_type", "shape")
    sides: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    present = {tensor.id for tensor in inputs}
    for side, name in (("inputs", "preprocessing"), ("outputs", "postprocessing")):
        for item in content[side]:
            id = str(item.get("id") or item.get("name") or ("input" if side == "inputs" else "output"))
            kept = {key: _plain(item[key]) for key in keep if key in item}
            if not new and side == "outputs" and item.get("halo"):
                kept["halo"] = item["halo"]
            if side == "inputs" and id not in present:
                kept["optional"] = True
            elif side == "inputs" or id in used:
                kept[name] = [_plain(operator) for operator in item.get(name) or []]
            sides[side].append(kept)
    entry = {key: _plain(value) for key, value in _mapping(_mapping(content.get("weights")).get(weights)).items()}
    dropped = ("authors", "parent", "comment", "dependencies", "attachments")
    common = {
        "format_version": str(content["format_version"]),
        "type": "model",
        "name": "model",
        "description": "A package that is run by napari-medai.",
        "authors": [{"name": "see the package"}],
        "cite": [{"text": "see the package", "doi": "10.5281/zenodo.0"}],
        "license": "MIT",
        **sides,
        "weights": {weights: {key: value for key, value in entry.items() if key not in dropped}} if weights else {},
    }
    if not new:
        tests = {side: [f"{side}{n}.npy" for n in range(len(sides[side]))] for side in sides}
        common |= {"documentation": "README.md", "timestamp": "2020-01-01T00:00:00+00:00", "tags": []}
        common |= {"test_inputs": tests["inputs"], "test_outputs": tests["outputs"]}
    return common


def _plain(value: Any) -> Any:
    """JSON values: numbers that YAML 1.1 reads as text, and infinite ones, which mean that there is no bound."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float) or value is None else str(value)


def _description(path: Path) -> Path | None:
    """The file of a package that describes it."""
    if path.is_dir():
        return next((path / name for name in NAMES if (path / name).is_file()), None)
    return path if path.name in NAMES and path.is_file() else None


def _load(file: Path) -> dict[str, Any]:
    """The mapping in a description. Aliases are allowed, as such files have them, and counted as if written out."""
    try:
        if file.is_symlink() or file.stat().st_size > MOST_BYTES:
            raise ModelError(
                f"{file.name} is a link or larger than {MOST_BYTES >> 10} KiB; descriptions are small files."
            )
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The description {file.name} cannot be read: {reason}.") from error
    # such files have aliases, and spellings of bioimage.io's own
    content = read_yaml(text, file.name, most_values=MOST_VALUES, deepest=DEEPEST, aliases=True, twice=True)
    if not isinstance(content, dict):
        raise ModelError(f"{file.name} holds {type(content).__name__}, not a mapping of fields to values.")
    return content


def _citation(content: dict[str, Any]) -> str:
    parts = []
    cites = content.get("cite")
    for item in cites[:10] if isinstance(cites, list) else []:
        entry = _mapping(item)
        text, doi = _text(entry.get("text")), _text(entry.get("doi"))
        if text or doi:
            parts.append(f"{text} doi:{doi}".strip() if doi else text)
    if not parts:
        authors = content.get("authors")
        parts = [_text(_mapping(a).get("name")) for a in authors[:20]] if isinstance(authors, list) else []
    return "; ".join(part for part in parts if part)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return " ".join(str(value).split())[:2000] if isinstance(value, str | int | float) else ""


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:64] or "bioimageio"
