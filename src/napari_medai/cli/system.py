"""Samples, the demo, and what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_medai.cli.options import Json
from napari_medai.core.errors import MedaiError
from napari_medai.terminal import print_json, say


def samples(
    name: Annotated[str, typer.Argument(help="One sample; all if none is named.")] = "",
    as_json: Json = False,
) -> None:
    """Bring the sample images into the cache, once, while online; list where they are."""
    from napari_medai.samples import SAMPLES, fetch_all, sample_path

    if name:
        from napari_medai.samples.fetch import download_package

        print(sample_path(name, download_package))
        return
    failed = fetch_all(lambda line: None)
    missing = {line.partition(":")[0] for line in failed}
    if not as_json:
        for key in SAMPLES.keys() - missing:
            print(f"{sample_path(key)}  {SAMPLES[key].title}")
    else:
        print_json({k: None if k in missing else str(sample_path(k)) for k in SAMPLES})
    for line in failed:
        say(f"medai: {line}")
    if failed:
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for screenshots and results.")] = Path("demo-output"),
    window: Annotated[bool, typer.Option(help="Keep the window open at the end.")] = True,
) -> None:
    """Run all five stages on the samples in a napari window and save what comes out."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("napari") is None:
        raise MedaiError('The demo needs napari; install it with: pip install "napari-medai[all]"')
    # the window belongs to ui, which the shell does not know otherwise
    import_module("napari_medai.ui.demo").run(out, keep_open=window)


def doctor(as_json: Json = False) -> None:
    """Print versions, devices, codecs, graphics and what is missing."""
    from napari_medai.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for section, lines in report.items():
        print(f"{section}:")
        for key, value in lines.items():
            print(f"  {key}: {value}")
