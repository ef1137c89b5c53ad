"""ModelSpec: what a model accepts, how it is prepared and undone, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from napari_medai.models.trust import Grant

Range = tuple[float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**20)]
# What a package may need beyond data: each is a kind of program that the owner of the machine allows, or not.
Capability = Literal["torchscript", "pt2", "python", "pickle"]
Safety = Literal["data", "config", "code"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Need(_Part):
    """Something in a package that is not run unless its owner allows it.

    Attributes
    ----------
    capability : str
        What would have to be allowed; empty if no permission helps, because we do not know how to run it.
    where : str
        Where it stands: a JSON path into a file (``"configs/inference.json#preprocessing::transforms::3"``) or a file.
    why : str
        What was found there, and what would be run; one sentence.
    """

    capability: Capability | Literal[""] = ""
    where: str
    why: str


class Accepts(_Part):
    """What a Volume must be.

    Attributes
    ----------
    ndim : tuple of int
        Numbers of spatial dimensions, out of 2 and 3.
    modality : tuple of str
        Modalities the model was made for; empty means any. An unknown modality passes with a note.
    rgb : bool
        Whether colour images are taken as they are (else they are turned to luminance with a note).
    min_size : int
        Smallest size along every spatial axis but z, in voxels.
    channels : int
        What the network takes at once along ``c`` (or ``s`` of colours). 1: the person chooses one of the image's.
    channel_names : tuple of str
        What the channels are, in their order: ``("T1", "T2", "FLAIR")``. May be empty.
    spacing_mm : tuple of 3 (low, high), optional
        Range of voxel spacing along z, y, x on which the model was tested.
    field_of_view_mm : tuple of 3 (low, high), optional
        Range of extent along z, y, x.
    orientation : str
        Axes that the network expects, as the three letters of the directions in which they grow ("RAS"); the engine
        turns the image to it and the result back. Empty if that does not matter or is not known.
    intensity_units : str
        ``"HU"``, ``"SUV"``; empty for arbitrary units.
    intensity : (low, high), optional
        Between them lie the values of an image as the model expects it, in ``intensity_units``.
    body_part : tuple of str
        DICOM Body Part Examined (0018,0015) terms; empty means any.
    """

    ndim: tuple[Literal[2, 3], ...]
    modality: tuple[str, ...] = ()
    rgb: bool = False
    min_size: int = 8
    channels: int = Field(default=1, ge=1)
    channel_names: tuple[str, ...] = ()
    spacing_mm: tuple[Range, Range, Range] | None = None
    field_of_view_mm: tuple[Range, Range, Range] | None = None
    orientation: str = ""
    intensity_units: str = ""
    intensity: Range | None = None
    body_part: tuple[str, ...] = ()


class Prepare(_Part):
    """How the pixels are brought to what the network was trained on; the engine undoes it exactly.

    Attributes
    ----------
    spacing_mm : tuple of 3 floats, optional
        (z, y, x) spacing to resample to along the image's own axes; none keeps the image's.
    isotropic : bool
        Resample to cubic voxels of the smallest spacing (if ``spacing_mm`` is not given).
    size : tuple of int
        Resample to exactly so many voxels along the network's axes, whatever the spacing.
    conform : int
        Resample to a cube of so many voxels a side, whose axes are parallel to the patient's and whose centre is the
        image's, at ``spacing_mm`` (1 mm if that is not given). 0: no cube.
    object_diameter : float, optional
        Typical object diameter in pixels to which 2-D images are scaled.
    normalise : str
        ``"percentile"`` maps the percentiles ``low`` and ``high`` to ``scaled``, ``"range"`` the values ``low`` and
        ``high``, ``"minmax"`` the smallest and the largest value; ``"zscore"`` makes mean 0 and deviation 1;
        ``"none"``. Each channel for itself.
    low, high : float
        Percentiles, or values for ``"range"``.
    scaled : (float, float)
        What ``low`` and ``high``, or the smallest and the largest value, become. Default 0 and 1.
    clip : bool
        Clip to ``scaled``.
    nonzero : bool
        Percentiles, mean and deviation are of the pixels that are not 0; with ``"zscore"`` those that are 0 stay 0.
    back : {"scores", "labels"}
        What is resampled to the image's grid: the network's scores, linearly, or the labels, to the nearest voxel.
    """

    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    isotropic: bool = False
    size: tuple[Count, ...] = ()
    conform: int = Field(default=0, ge=0, le=1024)
    object_diameter: float | None = Field(default=None, gt=0)
    normalise: Literal["percentile", "zscore", "range", "minmax", "none"] = "percentile"
    low: float = 1.0
    high: float = 99.8
    scaled: Range = (0.0, 1.0)
    clip: bool = False
    nonzero: bool = False
    back: Literal["scores", "labels"] = "scores"


class Label(_Part):
    """A label value, class or kind of object: its name and colour (r, g, b in 0..1)."""

    value: int
    name: str
    color: tuple[float, float, float] | None = None
    threshold: float = 0.5


class Gives(_Part):
    """What comes out.

    Attributes
    ----------
    kind : str
        ``"labels"`` (semantic), ``"instances"``, ``"classes"``, ``"boxes"`` or ``"image"``.
    labels : tuple of Label
        Labels, classes or kinds of objects, in the order of the network's outputs.
    """

    kind: Literal["labels", "instances", "classes", "boxes", "image"]
    labels: tuple[Label, ...] = ()


class Tiling(_Part):
    """Tile in voxels along the network's axes, and the share by which neighbours overlap.

    Attributes
    ----------
    size : tuple of int
        Empty lets the engine decide.
    overlap : float
        Share of a tile.
    multiple : int
        The network's total stride.
    halo : int
        Reach of the network in voxels: tiles overlap by twice as many at least, and of each only what has seen all
        of its surroundings is kept, so that tiled equals whole. With an ``overlap`` of 0 nothing is blended.
    places : {"even", "stepped"}
        Tiles spread evenly, or in whole steps as MONAI's ``SlidingWindowInferer`` has them: the same labels as there.
    blend : {"gaussian", "constant"}
        What the voxels of a tile weigh where tiles overlap: more in its middle, or all the same.
    empty : float, optional
        Tiles in which no prepared pixel is above this hold background alone, as the card shows: the network is not
        asked for them. At run time those with the highest pixels are asked for all the same, and compared.
    """

    size: tuple[Count, ...] = ()
    overlap: float = Field(default=0.25, ge=0, lt=1)
    multiple: Count = 16
    halo: int = Field(default=0, ge=0, le=1024)
    places: Literal["even", "stepped"] = "even"
    blend: Literal["gaussian", "constant"] = "gaussian"
    empty: float | None = Field(default=None, allow_inf_nan=False)


class ModelSpec(_Part):
    """All that is known of a model before its weights are read.

    Attributes
    ----------
    id, title, summary, version : str
        ``id`` is what people type: ``"nuclei"``.
    stage : str
        The stage that runs it.
    runner : str
        Name in `napari_medai.engine.RUNNERS` of the code that prepares its input and decodes its output.
    network, arguments
        Name in `napari_medai.nets.NETWORKS` and the arguments it is built with; empty if there are no weights of ours.
    weights : str
        File name beside this description; empty if the model has none or a package carries them.
    sha256 : str
        Over the weights.
    licence, citation : str
        SPDX id; how to cite.
    intended_use : str
        One sentence; every card also says that this is research software, not a medical device.
    options : dict
        Numbers that the runner needs (thresholds and the like), chosen on validation data.
    details : dict
        What else the runner needs to know of a package of another framework; plain JSON values. ``tensors`` maps
        the names in the file of weights to the network's where they differ.
    training_data, metrics : str
        One sentence each for the card; empty if the package does not say.
    source : str
        Name of the row in `SOURCES` that described it.
    path : Path, optional
        The package: a folder or a file. None for models in this package.
    safety : {"data", "config", "code"}
        ``"data"``: arrays and a description of ours. ``"config"``: a description of another framework, of which only
        known parts are built. ``"code"``: it carries a program.
    needs : tuple of Need
        What keeps it from being run as data; empty if nothing does.
    """

    id: str
    title: str
    summary: str
    stage: str
    version: str = "1"
    accepts: Accepts
    prepare: Prepare = Prepare()
    gives: Gives
    tiling: Tiling = Tiling()
    runner: str
    network: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str = ""
    sha256: str = ""
    licence: str = "BSD-3-Clause"
    citation: str = ""
    intended_use: str = "Research only; not a medical device."
    options: dict[str, float | int | str | bool] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    training_data: str = ""
    metrics: str = ""
    source: str = "manifest"
    path: Path | None = None
    safety: Safety = "data"
    needs: tuple[Need, ...] = ()

    @property
    def capabilities(self) -> frozenset[str]:
        """What its owner would have to allow for it to run."""
        return frozenset(need.capability for need in self.needs if need.capability)


class Model(_Part):
    """A model that can be run: its description and where its files are.

    Attributes
    ----------
    spec : ModelSpec
        The description.
    folder : Path
        Holds the weights and the card.
    source : str
        Name of the row in `SOURCES` that found it.
    grant : Grant, optional
        Permission of the owner to run what the package carries; then it runs in a process of its own, on a private
        copy. None: nothing of the package is ever executed.
    """

    spec: ModelSpec
    folder: Path
    source: str
    grant: Grant | None = None

    @property
    def id(self) -> str:
        """What people type."""
        return self.spec.id

    @property
    def weights(self) -> Path | None:
        """The file of weights, if there is one."""
        return self.folder / self.spec.weights if self.spec.weights else None

    @property
    def card(self) -> str:
        """The model card (Markdown)."""
        path = self.folder / "card.md"
        return path.read_text(encoding="utf-8") if path.is_file() else f"# {self.spec.title}\n\n{self.spec.summary}\n"
