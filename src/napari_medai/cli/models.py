"""What models there are: those that can be run, those that were added, those that can be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as RichTable

from napari_medai.cli.options import Json
from napari_medai.core.errors import ModelNotFoundError, ParamsError
from napari_medai.terminal import console, print_json, say

if TYPE_CHECKING:
    from napari_medai.models.spec import Model, ModelSpec

Named = Annotated[str, typer.Argument(metavar="ID|PATH", help="An id (see `medai models list`), or a package.")]


def models_list(
    words: Annotated[list[str] | None, typer.Argument(help="Only lines in which all these words stand.")] = None,
    stage: Annotated[str, typer.Option("--stage", "-s", help="Only models of this stage, e.g. segment.")] = "",
    available: Annotated[bool, typer.Option("--available", "-a", help="What can be had and is not here.")] = False,
    as_json: Json = False,
) -> None:
    """List the models that can be run now and what was added; with --available, what can be had."""
    from napari_medai.models import plugins
    from napari_medai.stages import STAGES

    if stage and stage not in STAGES:
        raise ParamsError(f"No stage is called {stage!r}; there are: {', '.join(STAGES)}.")
    found = [row for row in (_available() if available else _here()) if _wanted(row, words or [], stage)]
    problems = [] if available else plugins.problems()
    if as_json:
        print_json(found)
    elif available:
        _print_available(found)
    else:
        _print_here(found)
    for problem in problems:
        say(f"medai: {problem}")


def _here() -> list[dict[str, Any]]:
    """What can be run, then what was added and cannot; each with its ``state``."""
    from napari_medai.models import find_models
    from napari_medai.models.store import survey

    models = find_models()
    rows = [_of(m.spec) | {"source": m.source, "state": "ready"} for m in models]
    for item in survey():
        if item.model is not None:
            continue
        state = "asks" if item.spec is not None and item.spec.capabilities else "damaged"
        described = _of(item.spec) if item.spec is not None else {"id": item.id, "title": item.id, "stage": ""}
        rows.append(described | {"id": item.id, "source": "added", "state": state, "problem": item.problem})
    return rows


def _available() -> list[dict[str, Any]]:
    """Entries of the catalogue that are not here."""
    from napari_medai.models import find_models
    from napari_medai.models.catalogue import entries
    from napari_medai.models.records import status
    from napari_medai.models.store import survey

    here = {model.id for model in find_models()} | {item.id for item in survey()}
    return [
        entry.model_dump(mode="json")
        | {"state": "install" if entry.install else "download", "size": entry.size, "status": status(entry)}
        | {"command": entry.add_command}
        for entry in entries()
        if entry.id not in here and entry.model not in here
    ]


def _of(spec: ModelSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _wanted(row: dict[str, Any], words: list[str], stage: str) -> bool:
    keys = ("id", "title", "summary", "stage", "modality", "body_part", "stain", "licence", "source", "state")
    text = " ".join(str(row.get(key, "")) for key in keys).lower()
    return (not stage or row["stage"] == stage) and all(word.lower() in text for word in words)


def _print_here(rows: list[dict[str, Any]]) -> None:
    from napari_medai.models.catalogue import entries

    table = RichTable("id", "stage", "for", "summary", "licence", "source")
    for row in rows:
        if row["state"] == "ready":
            accepts = row["accepts"]
            made_for = f"{' or '.join(f'{n}-D' for n in accepts['ndim'])} {', '.join(accepts['modality'])}".strip()
            table.add_row(row["id"], row["stage"], made_for, row["summary"], row["licence"], row["source"])
    console().print(table)
    for row in rows:
        if row["state"] != "ready":
            print(f"\n{row['id']}: {'needs a permission' if row['state'] == 'asks' else 'cannot be used'}")
            print(f"  {row['problem']}".replace("\n", "\n  "))
    print(f"\n{len(entries())} models are in the catalogue: medai models list --available")


def _print_available(rows: list[dict[str, Any]]) -> None:
    from napari_medai.models.catalogue import readable

    table = RichTable("id", "stage", "for", "title", "size", "licence", "status")
    for row in rows:
        target = ", ".join(text for text in (row["modality"], row["body_part"] or row["stain"]) if text)
        size = "pip" if row["install"] else readable(row["size"])
        table.add_row(row["id"], row["stage"] or "-", target, row["title"], size, row["licence"], row["status"])
    console().print(table)
    print("To have one: medai models add ID")


def models_show(model: Named, as_json: Json = False) -> None:
    """Show a model's card: licence, citation, intended use, training data, metrics, safety, hash. Downloads nothing."""
    from napari_medai.models import load_model
    from napari_medai.models.catalogue import find_entry
    from napari_medai.models.records import last
    from napari_medai.models.store import added

    item = added(model)
    if item is not None and item.model is None and item.spec is not None:
        _show(item.spec, f"# {item.spec.title}\n\n{item.spec.summary}\n\n{item.problem}\n", "added", model, as_json)
        return
    entry = find_entry(model)
    if entry is not None and item is None:
        known = entry.model_dump(mode="json") | {"size": entry.size, "command": entry.add_command}
        if as_json:
            print_json(known)
            return
        print(f"# {entry.title}\n\n{entry.summary}\n")
        _print_facts(known | {"checked": (found := last(entry.id)) and f"{found.ok}, {found.when}"}, _ENTRY_FACTS)
        for file in entry.files:
            print(
                f"  {file.name}  {file.size or '? '} B  {file.known_hash or 'no hash published'}  {' '.join(file.urls)}"
            )
        print(f"To have it: {entry.add_command}")
        return
    loaded: Model = load_model(model)
    _show(loaded.spec, loaded.card, loaded.source, model, as_json)


_FACTS = ("licence", "citation", "intended_use", "training_data", "metrics", "safety", "sha256", "version", "source")
_ENTRY_FACTS = (*_FACTS[:6], "status", "checked", "homepage", "notes")


def _show(spec: ModelSpec, card: str, source: str, name: str, as_json: bool) -> None:
    from napari_medai.models.package import package_sha256
    from napari_medai.models.records import last

    package = package_sha256(spec.path) if spec.path is not None else ""
    checked = last(name)
    if as_json:
        outcome = checked.model_dump(mode="json") if checked is not None else None
        print_json(_of(spec) | {"source": source, "card": card, "package_sha256": package, "checked": outcome})
        return
    print(card.rstrip() + "\n")
    _print_facts(_of(spec) | {"source": source}, _FACTS)
    if package:
        print(f"package sha256: {package}")
    if checked is not None:
        print(f"checked: {'ok' if checked.ok else 'NOT ok'}, {checked.when}")


def _print_facts(row: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        print(f"{name.replace('_', ' ')}: {row.get(name) or 'not said'}")


def models_probe(
    path: Annotated[Path, typer.Argument(help="A file, a folder or a ZIP archive.")], as_json: Json = False
) -> None:
    """Say what a package is and what it needs, without running anything of it.

    Exit code 1 if it cannot be run without a permission, or not at all.
    """
    from napari_medai.models import probe
    from napari_medai.models.catalogue.matching import match
    from napari_medai.models.package import package_sha256

    spec = probe(path)
    entry, sha256 = match(path), package_sha256(path)
    if as_json:
        print_json(_of(spec) | {"package_sha256": sha256, "entry": entry.id if entry else ""})
    else:
        print(f"{spec.title}: {spec.stage}, read as {spec.source}, safety {spec.safety}")
        if entry is not None:
            print(f"known to the catalogue: {entry.id}")
        print(f"takes: {' or '.join(f'{n}-D' for n in spec.accepts.ndim)} {', '.join(spec.accepts.modality)}".rstrip())
        names = ", ".join(label.name for label in spec.gives.labels)
        print(f"gives: {spec.gives.kind}{f': {names}' if names else ''}")
        print(f"licence: {spec.licence or 'not said'}")
        print(f"package sha256: {sha256}")
        for need in spec.needs:
            print(f"refused: {need.where}: {need.why} (needs: {need.capability or 'nothing that can be allowed'})")
        print("It can be run." if not spec.needs else _what_now(spec, path))
    if spec.needs:
        raise typer.Exit(1)


def _what_now(spec: ModelSpec, path: Path) -> str:
    if any(not need.capability for need in spec.needs):
        return "It cannot be run here, whatever is allowed."
    allow = " ".join(f"--allow {capability}" for capability in sorted(spec.capabilities))
    return f"If you trust who made it: medai models trust {path} {allow}"


def found_package(name: str) -> tuple[Path, ModelSpec, str]:
    """The package, description and id that a person means by an id or a path.

    Raises
    ------
    ModelNotFoundError
        There is none here; the message says how to have it.
    """
    from napari_medai.models import find_models, load_model, probe
    from napari_medai.models.store import added

    item = added(name)
    if item is not None:
        if item.spec is None:
            raise ModelNotFoundError(item.problem)
        return item.package, item.spec, item.id
    for model in find_models():
        if model.id == name and model.spec.path is not None:
            return model.spec.path, model.spec, model.id
    if Path(name).exists():
        return Path(name), probe(name), name
    load_model(name)  # says why not
    raise ModelNotFoundError(f"{name!r} is part of napari-medai; it needs no permission.")
