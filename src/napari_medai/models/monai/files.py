"""The files of a bundle that are read without running anything: JSON and YAML, within limits of size and depth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from napari_medai.core.errors import ModelError
from napari_medai.models.yaml_file import check_values, read_yaml

# configs/metadata.json of the zoo's largest bundle has 21 kB, the largest configuration 17 kB
MOST_BYTES = {".json": 8 * 2**20, ".yaml": 2**20, ".yml": 2**20}
MOST_VALUES = 200_000
DEEPEST = 60
NAMES = ("inference.json", "inference.yaml", "inference.yml")

# an include: a file's name, and the entry in it
_INCLUDE = re.compile(r"(.*\.(?:json|yaml|yml))(?:::(.*))?", re.IGNORECASE | re.DOTALL)


def configuration(folder: Path) -> Path | None:
    """The configuration that says how a bundle is applied to an image, if there is one."""
    found = [folder / "configs" / name for name in NAMES]
    return next((path for path in found if path.is_file()), None)


def read(path: Path) -> Any:
    """The content of a JSON or YAML file.

    Raises
    ------
    ModelError
        It cannot be read, is larger or deeper than any bundle's, or is not well formed.
    """
    name = f"{path.parent.name}/{path.name}"
    most = MOST_BYTES[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ModelError(f"{name} of the bundle cannot be read: {error.strerror}.") from error
    if len(content) > most:
        raise ModelError(f"{name} of the bundle has more than {most // 2**20} MiB; a configuration was expected.")
    try:
        text = content.decode("utf-8-sig")
        if path.suffix.lower() != ".json":
            return read_yaml(text, name, most_values=MOST_VALUES, deepest=DEEPEST, aliases=True, twice=True)
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name} of the bundle is not well formed: {line[:200]}.") from error
    check_values(value, name, MOST_VALUES, DEEPEST)
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read`, and a mapping of texts to values.

    Raises
    ------
    ModelError
        As `read`, or it holds something else.
    """
    value = read(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path.parent.name}/{path.name} of the bundle holds no mapping of names to values.")
    return {str(key): item for key, item in value.items()}


def include(text: str) -> tuple[str, str]:
    """File and entry of an include such as ``"other.json::network_def"``; no file if it is in the same one."""
    match = _INCLUDE.fullmatch(text)
    return (match[1], match[2] or "") if match else ("", text)


def inside(folder: Path, name: str) -> Path | None:
    """The file with a name relative to a bundle, or to its folder of configurations; none if it lies elsewhere."""
    root = folder.resolve()
    for base in (root, root / "configs"):
        path = (base / name).resolve()
        if path.is_relative_to(root) and path.suffix.lower() in MOST_BYTES and path.is_file():
            return path
    return None
