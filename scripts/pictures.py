"""The pictures of the documentation: a real window, real images, real models.

``xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/pictures.py`` draws all of them into ``docs/images``; names of
pictures draw only those. Needs the sample images (``medai samples``), deepbet, and torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import napari
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_medai.samples import sample
from napari_medai.ui import demo
from napari_medai.ui.demo import Step
from napari_medai.ui.layers import volume_to_layers

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = (1500, 950)
STEPS = {
    "segment_head_mr": Step("segment", "head_mr", "brain", suffixes=()),
    "classify_head_mr": Step("classify", "head_mr", "quality", suffixes=()),
    "explain_head_mr": Step("explain", "head_mr", "brain", suffixes=()),
    "denoise_head_ct": Step("denoise", "head_ct", "self2d", suffixes=()),
    "segment_slide": Step("segment", "micronuclei_slide", "nuclei", suffixes=()),
    "detect_slide": Step("detect", "micronuclei_slide", "micronuclei", suffixes=()),
    "explain_slide": Step("explain", "micronuclei_slide", "nuclei", suffixes=()),
    "detect_nuclei_3d": Step("detect", "nuclei_3d", "blobs3d", suffixes=()),
}


def pump(seconds: float = 0.5, until: Callable[[], bool] = lambda: False) -> None:
    """Let the window go on for some seconds, or until something is so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.01)


@contextmanager
def window(dock: str, width: int) -> Iterator[tuple[napari.Viewer, object]]:
    """A viewer with a dock of ours."""
    viewer = napari.Viewer()
    viewer.window.resize(*SIZE)
    try:
        frame, widget = viewer.window.add_plugin_dock_widget("napari-medai", dock)
        viewer.window._qt_window.resizeDocks([frame], [width], Qt.Orientation.Horizontal)
        pump()
        yield viewer, widget
    finally:
        viewer.window.remove_dock_widget("all")
        viewer.close()


def stage(name: str) -> None:
    """A stage after its run, as the demo leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        demo.run(Path(folder), keep_open=False, steps=(STEPS[name],))
        (picture,) = Path(folder).glob("*.png")
        shutil.copy(picture, IMAGES / f"{name}.png")


def running() -> None:
    """A run under way, with its plan, and one that waits for it."""
    with window("Segment", 420) as (viewer, panel):
        for layer in volume_to_layers(sample("micronuclei_slide")):
            viewer.add_layer(napari.layers.Layer.create(*layer))
        panel.models.choose("nuclei")
        pump(30, lambda: panel.devices.itemText(0) != "Automatic")
        panel.start()
        panel.start()
        first = panel._running.runs[0].job
        pump(120, lambda: first.state.finished or (first.state.fraction or 0) > 0.4)
        pump(0.5)
        viewer.window.screenshot(str(IMAGES / "running.png"), canvas_only=False, flash=False)
        panel.stop()


def browser() -> None:
    """The study browser on some of pydicom's files, with one series opened."""
    import data_store  # of pydicom-data
    import pydicom.data

    from napari_medai.ui.browser_rows import row_of

    plain, own = Path(data_store.__file__).parent / "data", Path(pydicom.data.__file__).parent / "test_files"
    names = [plain / f"{name}.dcm" for name in ("693_UNCR", "RG1_UNCR", "RG3_UNCR", "MR2_UNCR", "JPEG-LL")]
    with tempfile.TemporaryDirectory() as folder, window("Study browser", 420) as (viewer, dock):
        for path in (*names, own / "J2K_pixelrep_mismatch.dcm"):
            shutil.copy(path, folder)
        dock.add([folder])
        pump(120, lambda: not dock._jobs.busy and bool(dock.listing.series))
        one = next(one for one in dock.listing.series if "5/5mm" in one.info.description)
        dock.open([one])
        pump(60, lambda: bool(viewer.layers) and not dock._jobs.busy)
        item = next(item for item in dock.rows._items() if row_of(item).series is one)
        dock.rows.setCurrentItem(item)
        dock.rows.scrollToItem(item, dock.rows.ScrollHint.PositionAtCenter)
        pump(12)  # pictures of the rows come, napari's notifications go
        viewer.window.screenshot(str(IMAGES / "browser.png"), canvas_only=False, flash=False)


def models() -> None:
    """The dock of models, one of which waits for a permission; and the question for it."""
    import torch

    from napari_medai.models.store import add
    from napari_medai.ui.trust import TrustDialog

    class Vessels(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.5 - image, image - 0.5], dim=1)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDAI_MODELS"] = str(Path(folder) / "models")
        package = Path(folder) / "vessels.ts"
        torch.jit.save(torch.jit.trace(Vessels(), torch.zeros(1, 1, 16, 16)), str(package))
        add(package, id="vessels", axes="bcyx", stage="segment", labels="ground,vessel")
        with window("Models", 700) as (viewer, dock):
            pump(60, lambda: bool(dock.rows))
            dock.go_to("brainchop-gwm")
            pump(1)
            viewer.window.screenshot(str(IMAGES / "models.png"), canvas_only=False, flash=False)
            dock.go_to("vessels")
            question = TrustDialog(dock.chosen.spec, dock)
            question.show()
            pump(1)
            question.grab().save(str(IMAGES / "trust.png"))
            question.close()


PICTURES: dict[str, Callable[[], None]] = {
    **{name: lambda name=name: stage(name) for name in STEPS},
    "running": running,
    "browser": browser,
    "models": models,
}


def main() -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", choices=[[], *PICTURES], help="only these pictures")
    for name in parser.parse_args().only or PICTURES:
        print(name, flush=True)
        PICTURES[name]()


if __name__ == "__main__":
    main()
