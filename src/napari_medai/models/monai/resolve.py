"""From a bundle's configuration to a `Plan`: only what its four parts reach is looked at, and only known parts pass."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from napari_medai.core.errors import ModelError
from napari_medai.models.monai import files, reviewed
from napari_medai.models.monai.expressions import RefusedError, evaluate
from napari_medai.models.monai.plan import Mark, Named, Part, Plan, TensorFunction
from napari_medai.models.spec import Need
from napari_medai.nets import registry

_WHOLE = re.compile(r"@\w*(?:::\w*)*")
_RELATIVE = re.compile(r"[@%]::+")
_WORDS = ("network_def", "preprocessing", "inferer", "postprocessing")


class Resolver:
    """Resolves one bundle; what cannot be run is kept in `needs`.

    Parameters
    ----------
    folder : Path
        The bundle.
    config : Path
        The configuration file.
    cuda : bool
        Whether expressions are told that there is CUDA.
    """

    def __init__(self, folder: Path, config: Path, cuda: bool = False) -> None:
        self.folder, self.file, self.cuda = folder, config, cuda
        self.needs: list[Need] = []
        self._done: dict[str, Any] = {}
        self._open: list[str] = []
        self.config = files.read_mapping(config)
        metadata = folder / "configs" / "metadata.json"
        if metadata.is_file():
            self.config.setdefault("_meta_", files.read_mapping(metadata))

    def plan(self) -> Plan | None:
        """The bundle's parts, or none if a part is missing or refused; then `needs` says why."""
        missing = [word for word in _WORDS[:3] if word not in self.config]
        if missing:
            what = "it makes no result out of an image that is given to it"
            for word in missing:
                self._need(word, f"there is no {word}: {what}", "")
        found = {word: self.entry(word) for word in _WORDS if word in self.config}
        self._detector()
        found.setdefault("postprocessing", Part("Compose", {"transforms": []}, "postprocessing"))
        for word, part in found.items():
            if not isinstance(part, Part) and part is not Mark.BROKEN:
                self._need(word, f"{word} is no part that can be built", "")
        before, after = found.get("preprocessing"), found["postprocessing"]
        steps = self._steps("preprocessing", before) if isinstance(before, Part) else ()
        steps_after = self._steps("postprocessing", after) if isinstance(after, Part) else ()
        if isinstance(before, Part) and not any(step.name in reviewed.READERS for step in steps):
            self._need("preprocessing", "its image is read by no LoadImage, whose place a scan could take", "")
        if self.needs or not (isinstance(before, Part) and isinstance(after, Part)):
            return None
        evaluator = self.config.get("evaluator")
        amp = evaluator.get("amp", False) if isinstance(evaluator, Mapping) else False
        return Plan(
            found["network_def"],
            found["inferer"],
            steps,
            steps_after,
            before,
            after,
            amp if amp in (True, False) else True,
        )

    def entry(self, id: str) -> Any:
        """The resolved value of the entry with an id such as ``"preprocessing::transforms"``."""
        if id in self._done:
            return self._done[id]
        if id in self._open:
            raise RefusedError(f"entries that refer to each other ({id!r})")
        value: Any = self.config
        for key in id.split("::"):
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise RefusedError(f"a reference to {id!r}, which is not there,")
        self._open.append(id)
        try:
            self._done[id] = self._value(value, id)
        finally:
            self._open.pop()
        return self._done[id]

    def _value(self, value: Any, where: str) -> Any:
        """The resolved value of a piece of configuration; a refusal becomes a need."""
        try:
            if isinstance(value, dict):
                if "_target_" in value:
                    return self._part(value, where)
                pairs = {str(key): self._child(item, f"{where}::{key}") for key, item in value.items()}
                return {key: item for key, item in pairs.items() if item is not Mark.DISABLED}
            if isinstance(value, list):
                items = [self._child(item, f"{where}::{n}") for n, item in enumerate(value)]
                return [item for item in items if item is not Mark.DISABLED]
            if isinstance(value, str):
                return self.text(value, where)
        except RefusedError as error:
            self._need(where, f"{error} is not evaluated")
            return Mark.BROKEN
        return value

    def _child(self, value: Any, where: str) -> Any:
        """A nested value: by its id, so that a reference to it gives the same object."""
        if isinstance(value, dict) and "_target_" in value:
            try:
                return self.entry(where)
            except RefusedError:  # it was included from elsewhere and has no id of its own
                return self._value(value, where)
        return self._value(value, where)

    def text(self, text: str, where: str) -> Any:
        """The resolved value of a text: an expression, a reference, an include, or the text itself.

        Raises
        ------
        RefusedError
            It is an expression that is not evaluated, or refers to what is not there.
        """
        text = _absolute(text, where)
        if text.startswith("%"):
            return self._value(self._included(text[1:], where), where)
        if text.startswith("$"):
            return evaluate(text[1:], self.entry, lambda name, given: self._made(name, given, where), self.cuda)
        normal = text.replace("#", "::")
        if normal.startswith("@") and _WHOLE.fullmatch(normal):
            return self.entry(normal[1:])
        return text

    def _included(self, text: str, where: str) -> Any:
        file, id = files.include(text.replace("#", "::"))
        if not file:
            source: Any = self.config
        else:
            path = files.inside(self.folder, file)
            if path is None:
                self._need(where, f"{file!r} is included from outside of the bundle, or is not there", "")
                return Mark.BROKEN
            source = files.read_mapping(path)
        for key in id.split("::") if id else ():
            try:
                source = source[int(key)] if isinstance(source, list) else source[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise RefusedError(f"an include of {text!r}, which is not there,") from None
        # MONAI does not resolve includes within includes either
        return copy.deepcopy(source)

    def _part(self, config: dict[str, Any], where: str) -> Any:
        disabled = self._value(config.get("_disabled_", False), f"{where}::_disabled_")
        if disabled is Mark.BROKEN:
            return disabled
        if disabled.strip().lower() == "true" if isinstance(disabled, str) else bool(disabled):
            return Mark.DISABLED
        target = config["_target_"]
        if not isinstance(target, str):
            self._need(where, "its _target_ is no name")
            return Mark.BROKEN
        if config.get("_requires_"):
            self._need(f"{where}::_requires_", "what it requires is code that would run first")
        if config.get("_mode_", "default") != "default":
            self._need(f"{where}::_mode_", f"the mode {config['_mode_']!r} makes no object of a class")
        name = self._known(target, where)
        if name in reviewed.READERS | reviewed.WRITERS | reviewed.LEFT_OUT:
            return self._replaced(name, config, where)
        if not name:
            return Mark.BROKEN
        given = {key: self._child(item, f"{where}::{key}") for key, item in config.items() if not _own(key)}
        return self._made(name, {key: item for key, item in given.items() if item is not Mark.DISABLED}, where)

    def _known(self, target: str, where: str) -> str:
        """The reviewed name of a target; empty, with a need, if there is none."""
        if target in reviewed.STAND_INS:
            name, script, hashes = reviewed.STAND_INS[target]
            path = self.folder / script
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in hashes:
                return name
        name = reviewed.find(target)
        if name:
            return name
        capability: Literal["python", ""] = "python"
        why = f"{target!r} is not in the list of reviewed classes"
        first = target.partition(".")[0]
        if target.rpartition(".")[2] in reviewed.INTERACTIVE:
            why, capability = f"{target!r} needs what a person clicks or draws", ""
        elif first != "monai" and ((self.folder / first).is_dir() or (self.folder / f"{first}.py").is_file()):
            why = f"{target!r} is a program that the bundle brings along"
        self._need(where, why, capability)
        return ""

    def _replaced(self, name: str, config: dict[str, Any], where: str) -> Part:
        """A reader or writer: of it only the keys and the layout of the image are looked at."""
        wanted = {"keys", "dtype", "ensure_channel_first", "image_only"} if name in reviewed.READERS else {"keys"}
        given = {key: self._child(item, f"{where}::{key}") for key, item in config.items() if key in wanted}
        if not isinstance(given.get("dtype"), str | Named | type(None)):
            self._need(f"{where}::dtype", "it is no type of pixels")
        return Part(name, given, where)

    def _made(self, name: str, given: dict[str, Any], where: str) -> Any:
        """A part with its arguments, after every one was checked."""
        row, broken = reviewed.ROWS[name], any(_is_broken(value) for value in given.values())
        obsolete = registry.OBSOLETE.get(name, frozenset())
        for argument, value in given.items():
            if argument in obsolete or _is_broken(value):
                continue
            problem = _problem(argument, value, row)
            if problem:
                broken = True
                self._need(f"{where}::{argument}", problem)
        if broken:
            return Mark.BROKEN
        return Part(name, {key: value for key, value in given.items() if key not in obsolete}, where)

    def _steps(self, word: str, compose: Part) -> tuple[Part, ...]:
        if compose.name != "Compose":
            return (compose,)
        steps = compose.arguments.get("transforms", [])
        if not isinstance(steps, list) or not all(isinstance(step, Part) for step in steps):
            self._need(f"{word}::transforms", "it is no list of transforms", "")
            return ()
        return tuple(steps)

    def _detector(self) -> None:
        """The settings that a detector is given by calls of its methods, if the inferer has a detector."""
        inferer = self._done.get("inferer")
        if isinstance(inferer, Part) and "detector" in inferer.arguments and "detector_ops" in self.config:
            self.entry("detector_ops")

    def _need(self, where: str, why: str, capability: Literal["python", ""] = "python") -> None:
        path = f"{self.file.parent.name}/{self.file.name}#{where}"
        if all(need.where != path for need in self.needs):
            self.needs.append(Need(capability=capability, where=path, why=f"{why[:1].upper()}{why[1:]}."))


def _is_broken(value: Any) -> bool:
    return value is Mark.BROKEN or (isinstance(value, list | tuple) and any(item is Mark.BROKEN for item in value))


def _own(key: str) -> bool:
    return key in ("_target_", "_disabled_", "_requires_", "_mode_", "_desc_")


def _problem(argument: str, value: Any, row: reviewed.Row) -> str:
    """What is wrong with one argument; empty if nothing is."""
    if argument not in row.arguments:
        return f"{argument} is not among the reviewed arguments of {row.target.partition(':')[2]}"
    if argument in ("pretrained", "pretrained_backbone"):
        return "weights from the internet or another file are not loaded" if value not in (False, None) else ""
    if argument in reviewed.PARTS or (argument == "backbone" and row.target.rpartition(":")[2] in reviewed.BACKBONES):
        return "" if isinstance(value, Part) else f"{argument} is no part"
    if argument == "transforms":
        steps = value if isinstance(value, list) else [value]
        return "" if all(isinstance(item, Part) for item in steps) else "it is no list of transforms"
    items = list(value) if isinstance(value, list | tuple) else [value]
    if argument in reviewed.FUNCTIONS:
        plain = all(isinstance(item, TensorFunction | type(None)) for item in items)
        return "" if plain else f"{argument} is no function of one tensor"
    plain_items = [item for item in items if not isinstance(item, Named) and item is not Mark.DEVICE]
    if len(plain_items) < len(items) and not (argument in reviewed.DEVICES or "dtype" in argument):
        return f"{argument} is neither a number nor a word"
    problems = registry.check_value(plain_items, largest=1e12 if argument in reviewed.INTENSITIES else None)
    return problems[0] if problems else ""


def _absolute(text: str, where: str) -> str:
    """Relative ids (``@#sibling``, ``@##uncle``) as whole ones."""
    if not text.startswith(("@", "%", "$")):
        return text
    text = text.replace("#", "::")
    levels = where.split("::")
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        up = prefix.count("::")
        if up > len(levels):
            raise RefusedError(f"a relative reference out of the configuration, {text[:80]!r},")
        base = "::".join(levels[:-up])
        text = text.replace(prefix, prefix[0] + (f"{base}::" if base else ""))
    return text


def resolve(folder: Path, cuda: bool = False) -> tuple[Plan | None, tuple[Need, ...], Resolver]:
    """Plan and needs of a bundle.

    Raises
    ------
    ModelError
        It has no configuration for inference, or its files are not well formed.
    """
    config = files.configuration(folder)
    if config is None:
        raise ModelError(
            f"The bundle {folder.name!r} has no configs/inference.json or .yaml: nothing says how it runs."
        )
    resolver = Resolver(folder, config, cuda)
    plan = resolver.plan()
    return plan, tuple(resolver.needs), resolver
