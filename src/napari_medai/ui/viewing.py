"""How the viewer stands to the patient: superior is up, 3-D is true, what is painted on a view shows at once.

`attach` is called wherever our layers come from; it does nothing a second time. What it sets about the camera it
sets once for each way of looking: as soon as a person turns the camera's axes, they are theirs.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from napari_medai.core.geometry import index_to_world, world_to_index
from napari_medai.ui.letters import edges, show_letters
from napari_medai.ui.placement import SOLID_KEY, layer_affine, record
from napari_medai.ui.reslicing import PaintedView
from napari_medai.ui.scans import is_scan
from napari_medai.ui.solid import adopt_solid, make_flat, make_solid

_ATTACHED: dict[int, Viewing] = {}
# What the patient's world needs to be seen from its right side and not in a mirror: x runs to the right of the
# screen and y down, so z runs away from the eye. napari's own default is the mirror image.
_DEPTH = "away"
# The orders of axes that rolling leads to, by the axis across the screen before: axial, sagittal, coronal, axial.
_NEXT_VIEW = {0: (2, 0, 1), 2: (1, 0, 2), 1: (0, 1, 2)}
_FROM_THE_FRONT = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))  # towards posterior, superior up


def attach(viewer: Any) -> None:
    """Have a viewer show scans as the patient lies; once for each viewer.

    Parameters
    ----------
    viewer : napari Viewer or ViewerModel
        None does nothing.
    """
    if viewer is None:
        return
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    known = _ATTACHED.get(id(viewer))
    if known is None or known.viewer is not viewer:
        _ATTACHED[id(viewer)] = Viewing(viewer)


def attach_current() -> None:
    """`attach` the current viewer, if there is one."""
    import napari

    attach(napari.current_viewer())


class Viewing:
    """The callbacks of one viewer; napari keeps only weak references to them, and they keep none to the viewer."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)
        weakref.finalize(viewer, _ATTACHED.pop, id(viewer), None)
        self._set = tuple(map(str, viewer.scene.camera.orientation))
        # a person who changed napari's settings wants what they say
        self._theirs = self._set != ("towards", "down", "right")
        self._fronted = False
        self._order = tuple(viewer.dims.order)
        self._place: Any = None
        self._point: tuple[float, ...] = ()
        dims = viewer.dims.events
        self._early = _Early(self)
        dims.ndisplay.connect(self._early.before_turning, position="first")
        dims.order.connect(self._early.before_rolling, position="first")
        dims.ndisplay.connect(self._after_turning, position="last")
        dims.order.connect(self._orient, position="last")
        viewer.scene.camera.events.orientation.connect(self._write_letters)
        viewer.layers.selection.events.active.connect(self._write_letters)
        viewer.events.reset_view.connect(self._on_reset)
        viewer.layers.events.inserted.connect(self._on_inserted, position="last")
        viewer.layers.events.removed.connect(self._orient, position="last")
        for layer in viewer.layers:
            self._welcome(layer)
        if viewer.dims.ndisplay == 3:
            make_solid(viewer.layers)
        self._orient()

    @property
    def viewer(self) -> Any:
        """The viewer; None once it is gone."""
        return self._viewer()

    # 3-D

    def before_turning(self) -> None:
        """Before napari slices for the other display: layers change place, and the centre of the view is noted."""
        viewer = self.viewer
        if viewer is None:
            return
        if viewer.dims.ndisplay == 3:
            self._place = self._centre(2)
            self._point = tuple(viewer.dims.point)
            make_solid(viewer.layers)
        else:
            self._place = self._centre(3)
            make_flat(viewer.layers)

    def _after_turning(self) -> None:
        viewer = self.viewer
        if viewer is None:
            return
        self._orient()
        if self._place is not None and viewer.scene.camera.synced:
            place = self._place
            axes = [a - viewer.dims.ndim for a in viewer.dims.order[-3:]]
            if viewer.dims.ndisplay == 3:
                viewer.scene.camera.center = tuple(float(place[a]) for a in axes)
            else:
                here = list(viewer.dims.point)
                # sliders along the axes of the screen stay where they were; that across follows the camera, as napari's
                here[-3:] = self._point[-3:] if len(self._point) == len(here) else here[-3:]
                here[axes[0]] = float(place[axes[0]])
                viewer.dims.set_point(range(viewer.dims.ndim), here)
                viewer.scene.camera.center = (0.0, *(float(place[a]) for a in axes[1:]))
        self._place = None

    def _centre(self, ndisplay: int) -> Any:
        """The centre of the view in the world to come, (z, y, x); None where it has none."""
        viewer = self.viewer
        way = self._way()
        if way is None or viewer.dims.ndim < 3:
            return None
        order = viewer.dims.order[-3:]
        axes = [a - viewer.dims.ndim for a in order]
        if min(axes) < -3:  # time or so is among the displayed axes
            return None
        here = np.array(viewer.dims.point[-3:], dtype=float)
        centre = np.array(viewer.scene.camera.center, dtype=float)
        shown = axes if ndisplay == 3 else axes[1:]
        for axis, value in zip(shown, centre[-len(shown) :], strict=True):
            here[axis] = value
        return index_to_world(way, here) if ndisplay == 2 else world_to_index(way, here)

    def _way(self) -> Any:
        """Displayed -> world of the patient's scan that is looked at, or of the first."""
        layers = [self.viewer.layers.selection.active, *self.viewer.layers]
        ways = [record(layer)["to_world"] for layer in layers if layer is not None and _is_patient(layer)]
        return ways[0] if ways else None

    # layers

    def _on_inserted(self, event: Any) -> None:
        viewer = self.viewer
        if viewer is None:
            return
        layer = event.value
        self._welcome(layer)
        if viewer.dims.ndisplay == 3 and SOLID_KEY not in layer.metadata:
            if "to_world" in record(layer):
                make_solid([layer])
            elif layer.ndim >= 3:
                adopt_solid(layer, viewer.layers)
        self._orient()

    def _welcome(self, layer: Any) -> None:
        viewer = self.viewer
        if layer._type_string != "labels":
            return
        if "to_world" not in record(layer) and viewer.dims.ndisplay == 2:
            _share_voxels(layer, [other for other in viewer.layers if other is not layer])
        if isinstance(layer.data, PaintedView):
            layer.events.paint.connect(_show_painted)

    # the camera

    def _orient(self, _: Any = None) -> None:
        self._turn()
        self._write_letters()

    def before_rolling(self) -> None:
        """napari's rolling of the axes leads through the three views of a patient, none of which lies on its side."""
        viewer = self.viewer
        if viewer is None:
            return
        order, before = tuple(viewer.dims.order), self._order
        self._order = order
        rolled = len(order) == len(before) == 3 and order == (before[-1], *before[:-1])
        if rolled and not self._theirs and viewer.dims.ndisplay == 2 and any(map(_is_patient, viewer.layers)):
            self._order = _NEXT_VIEW[before[0]]
            viewer.dims.order = self._order

    def _turn(self) -> None:
        """Superior up where z is vertical; in 3-D the first look is from the front."""
        viewer = self.viewer
        if viewer is None or self._theirs or not any(_is_patient(layer) for layer in viewer.layers):
            return
        camera, dims = viewer.scene.camera, viewer.dims
        if tuple(map(str, camera.orientation)) != self._set:
            self._theirs = True
            return
        upright = dims.ndisplay == 2 and dims.ndim >= 3 and dims.order[-2] == dims.ndim - 3
        self._set = (_DEPTH, "up" if upright else "down", "right")
        camera.orientation = self._set
        if dims.ndisplay == 3 and not self._fronted and tuple(dims.order[-3:]) == tuple(range(dims.ndim))[-3:]:
            self._fronted = True
            camera.set_view_direction(*_FROM_THE_FRONT)

    def _write_letters(self, _: Any = None) -> None:
        """The patient's sides at the edges of a slice."""
        viewer = self.viewer
        if viewer is None:
            return
        dims, texts = viewer.dims, {}
        displayed = [axis - dims.ndim + 3 for axis in dims.order[-2:]]
        way = self._way()
        if way is not None and dims.ndisplay == 2 and dims.ndim >= 3 and min(displayed) >= 0:
            vertical, horizontal = map(str, viewer.scene.camera.orientation2d)
            texts = edges(way, (displayed[0], displayed[1]), (vertical, horizontal))
        show_letters(viewer, texts)

    def _on_reset(self, _: Any = None) -> None:
        """napari's home button looks along z; a patient is looked at from the front."""
        viewer = self.viewer
        if viewer is None or self._theirs or viewer.dims.ndisplay != 3 or not self._fronted:
            return
        if tuple(viewer.scene.camera.angles) == (0.0, 0.0, 0.0):
            viewer.scene.camera.set_view_direction(*_FROM_THE_FRONT)


class _Early:
    """Callbacks that napari runs before its own: layers must have changed place before they are sliced anew.

    napari runs the callbacks of its own modules before all others, wherever these ask to be put, and knows its
    own by the name of their module.
    """

    __module__ = "napari.components"

    def __init__(self, viewing: Viewing) -> None:
        self._viewing = weakref.ref(viewing)

    def before_turning(self) -> None:
        """See `Viewing.before_turning`."""
        viewing = self._viewing()
        if viewing is not None:
            viewing.before_turning()

    def before_rolling(self) -> None:
        """See `Viewing.before_rolling`."""
        viewing = self._viewing()
        if viewing is not None:
            viewing.before_rolling()


def _is_patient(layer: Any) -> bool:
    return is_scan(layer) and record(layer)["volume"].units == "mm" and record(layer)["volume"].ndim_spatial == 3


def _share_voxels(layer: Any, others: list[Any]) -> None:
    """Give new labels that were made on a view the voxels of its scan to be painted: *New labels* makes such."""
    for scan in others:
        known = record(scan)
        if "view" not in known or not is_scan(scan) or layer.data.shape != scan.data.shape[: scan.ndim]:
            continue
        if not isinstance(layer.data, np.ndarray) or not np.allclose(layer_affine(layer, 3), layer_affine(scan, 3)):
            continue
        if layer.data.any():
            return
        volume = known["volume"]
        axes = volume.axes.removesuffix("s")
        dtype = layer.data.dtype
        kept = ("frame_of_reference_uid", "series_uid", "axis_t", "repaired")
        meta = {k: v for k, v in volume.meta.items() if k in kept}
        empty = np.zeros(volume.shape[: len(axes)], dtype)
        labels = volume.replace(
            array=empty, axes=axes, modality="SEG", name=layer.name, meta={**meta, "is_labels": True}
        )
        from napari_medai.ui.layers import volume_to_layer

        data, keywords, _ = volume_to_layer(labels, frame=scan)
        layer.metadata.update(keywords["metadata"])
        layer.data = data
        layer.scale, layer.translate = keywords["scale"], keywords["translate"]
        return


def _show_painted(event: Any) -> None:
    """Slice labels again after a stroke: a voxel may show at more places than the brush touched."""
    event.source.refresh(extent=False)
