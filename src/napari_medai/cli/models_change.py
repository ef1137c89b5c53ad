"""Adding, removing, checking and allowing models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_medai.cli.models import Named, found_package
from napari_medai.cli.options import Json
from napari_medai.core.errors import ModelError, ParamsError
from napari_medai.terminal import Shown, print_json, say

if TYPE_CHECKING:
    from napari_medai.models.spec import ModelSpec
    from napari_medai.models.store import Added

Answer = Annotated[
    list[str] | None,
    typer.Option("--answer", help="Anything else that its source asks: NAME=VALUE; may be given several times."),
]


def models_add(
    model: Annotated[str, typer.Argument(metavar="ID|PATH", help="An id of the catalogue, or a package on a disk.")],
    id: Annotated[str, typer.Option("--id", help="What it will be called here.")] = "",
    axes: Annotated[str, typer.Option("--axes", help="ONNX and programs: axes of the input, e.g. bczyx.")] = "",
    stage: Annotated[str, typer.Option("--stage", help="ONNX and programs: which stage runs it.")] = "",
    labels: Annotated[str, typer.Option("--labels", help="ONNX and programs: names of its labels, by commas.")] = "",
    answer: Answer = None,
    as_json: Json = False,
) -> None:
    """Download a model of the catalogue, or copy a package from a disk; it is found by its id from then on.

    A download that broke or was stopped goes on where it was. MEDAI_MIRROR names another place to download from.
    """
    from napari_medai.models import store
    from napari_medai.models.catalogue import fetch, find_entry

    asked = _answers(axes, stage, labels, answer or [])
    entry = find_entry(model)
    with Shown(model if entry is not None else Path(model).name) as shown:
        if entry is not None and not _is_path(model):
            if id or asked:
                raise ParamsError(f"{model} is in the catalogue and has its id and description; leave the options out.")
            item = fetch(model, shown)
        else:
            if not Path(model).exists():
                raise ModelError(
                    f"{model!r} is neither in the catalogue (medai models list --available) nor a file or folder here."
                )
            item = store.add(model, id, progress=shown, **asked)
    if as_json:
        print_json(_as_dict(item))
        return
    known = f" ({item.entry.title})" if item.entry is not None else ""
    print(f"{item.id}{known} was added.")
    if item.entry is not None and item.entry.files and not all(file.known_hash for file in item.entry.files):
        say(f"medai: its publisher gives no hash; what came has the sha256 {item.sha256}")
    if item.problem:
        print(item.problem)
    elif item.spec is not None and item.spec.stage:
        print(f"To run it: medai {item.spec.stage} IMAGE --model {item.id} --out RESULT")


def _is_path(text: str) -> bool:
    return Path(text).exists() and (Path(text).is_absolute() or len(Path(text).parts) > 1 or text.startswith("."))


def _answers(axes: str, stage: str, labels: str, others: list[str]) -> dict[str, Any]:
    asked: dict[str, Any] = {"axes": axes, "stage": stage}
    asked["labels"] = tuple(name.strip() for name in labels.split(",") if name.strip())
    for text in others:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ParamsError(f"--answer {text!r} is not NAME=VALUE.")
        asked[name] = value
    return {name: value for name, value in asked.items() if value}


def _as_dict(item: Added) -> dict[str, Any]:
    described = item.spec.model_dump(mode="json") if item.spec is not None else {}
    return described | {
        "id": item.id,
        "package": str(item.package),
        "package_sha256": item.sha256,
        "entry": item.entry.id if item.entry else "",
        "state": "ready" if item.model is not None else "asks" if item.spec and item.spec.capabilities else "damaged",
        "problem": item.problem,
    }


def models_remove(
    id: Annotated[str, typer.Argument(help="An added model.")],
    as_json: Json = False,
) -> None:
    """Delete an added model with its files."""
    from napari_medai.models.store import remove

    remove(id)
    if as_json:
        print_json({"removed": id})
    else:
        print(f"{id} was removed.")


def models_check(model: Named, as_json: Json = False) -> None:
    """Compare a model's files with their hashes, load it, and run its own test data and a small image.

    The outcome is kept: what was unverified is verified on this machine from then on. Exit code 1 if anything differs.
    """
    from napari_medai.checking import check

    with Shown(model) as shown:
        found = check(model, shown)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        for finding in found.findings:
            print(f"{'ok ' if finding.ok else 'NO '} {finding.what}: {finding.detail}")
        print(f"{found.id}: {'verified on this machine' if found.ok else 'not verified'}, {found.seconds} s")
    if not found.ok:
        raise typer.Exit(1)


def models_trust(
    model: Annotated[str, typer.Argument(metavar="[ID|PATH]", help="A model that was added, or a package.")] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="torchscript, pt2, python or pickle; may be given several times."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List what was allowed.")] = False,
    revoke: Annotated[str, typer.Option("--revoke", help="Take a permission back: an id, a path or a sha256.")] = "",
    as_json: Json = False,
) -> None:
    """Allow one package, as it is now, to run what it carries; any changed byte ends the permission.

    It is run in a process of its own, on a private copy. Without --allow it says what would have to be allowed and why.
    """
    if sum((bool(model), listed, bool(revoke))) != 1:
        raise ParamsError("Give a model to allow, or --list, or --revoke ID.")
    if listed:
        _list_grants(as_json)
    elif revoke:
        _revoke(revoke, as_json)
    else:
        _allow(model, allow or [], yes, as_json)


def _list_grants(as_json: bool) -> None:
    from napari_medai.models.trust import grants

    kept = grants()
    if as_json:
        print_json(
            [
                {"sha256": g.sha256, "capabilities": sorted(g.capabilities), "given": g.given, "title": g.title}
                for g in kept
            ]
        )
        return
    for grant in kept:
        print(f"{grant.sha256}  {', '.join(sorted(grant.capabilities))}  {grant.given}  {grant.title}")
    if not kept:
        print("Nothing was allowed.")


def _revoke(name: str, as_json: bool) -> None:
    from napari_medai.models.package import package_sha256
    from napari_medai.models.store import added
    from napari_medai.models.trust import revoke

    item = added(name)
    if item is not None:
        sha256 = item.sha256
    elif Path(name).exists():
        sha256 = package_sha256(name)
    else:
        sha256 = name.lower()
        if len(sha256) < 12 or any(letter not in "0123456789abcdef" for letter in sha256):
            raise ModelError(f"{name!r} is no added model, no path and no sha256; see: medai models trust --list")
    if not revoke(sha256):
        raise ModelError(f"There is no permission for {name!r}; see: medai models trust --list")
    if as_json:
        print_json({"revoked": sha256})
    else:
        print("The permission was taken back.")


def _allow(name: str, allow: list[str], yes: bool, as_json: bool) -> None:
    from napari_medai.models.package import package_sha256
    from napari_medai.models.trust import CAPABILITIES, give

    unknown = sorted(set(allow) - set(CAPABILITIES))
    if unknown:
        raise ParamsError(f"{', '.join(unknown)} cannot be allowed; there are: {', '.join(CAPABILITIES)}.")
    package, spec, _ = found_package(name)
    sha256 = package_sha256(package)
    if not spec.needs:
        raise ModelError(f"{spec.title!r} runs without any permission; there is nothing to allow.")
    for line in consent(spec, sha256):
        say(line)
    missing = sorted(spec.capabilities - set(allow))
    if missing or any(not need.capability for need in spec.needs):
        if any(not need.capability for need in spec.needs):
            raise ModelError(f"{spec.title!r} cannot be run here, whatever is allowed.")
        needed = " ".join(f"--allow {capability}" for capability in sorted(spec.capabilities))
        raise ModelError(f"Nothing was allowed. If you trust who made it: medai models trust {name} {needed}")
    if not yes:
        if not sys.stdin.isatty():
            raise ModelError("Nothing was allowed: nobody is there to be asked. Give --yes if you have decided.")
        typer.confirm("Allow this?", abort=True, err=True)
    grant = give(package, spec, allow)
    if as_json:
        print_json({"sha256": grant.sha256, "capabilities": sorted(grant.capabilities), "given": grant.given})
    else:
        print(f"Allowed: {', '.join(sorted(grant.capabilities))}. To take it back: medai models trust --revoke {name}")


def consent(spec: ModelSpec, sha256: str) -> list[str]:
    """What a person is shown before they allow something: each place, what it is, and what allowing it means."""
    from napari_medai.models.trust import CAPABILITIES

    lines = [f"{spec.title} ({spec.path.name if spec.path else spec.id}), sha256 {sha256}"]
    lines += [f"  {need.where}: {need.why}" for need in spec.needs]
    if spec.capabilities:
        lines.append("To allow it means to")
        lines += [f"  {capability}: {CAPABILITIES[capability]}" for capability in sorted(spec.capabilities)]
        lines.append("with your account's rights to files, in a process of its own. Nobody has looked at it for you.")
    return lines
