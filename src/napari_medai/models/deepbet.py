"""The source of `brain`: deepbet's networks where the package deepbet is installed. It is never imported.

Only its two files of weights are used; its code needs libraries that this package does without.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec, Prepare, Tiling

# Released with deepbet 1.0.2. TorchScript archives are programs: no other bytes than these are ever opened.
SHA256 = {
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}

CARD = Path(__file__).parent / "builtin" / "brain"

INSTALL = 'pip install "napari-medai[deepbet]"'

SPEC = ModelSpec(
    id="brain",
    title="Brain",
    summary="The brain (with cerebellum and brain stem) in a T1-weighted MR image of a head.",
    stage="segment",
    version="deepbet 1.0.2",
    accepts=Accepts(ndim=(3,), modality=("MR",), min_size=32),
    prepare=Prepare(normalise="none"),
    gives=Gives(kind="labels", labels=(Label(value=1, name="brain", color=(0.95, 0.55, 0.25)),)),
    tiling=Tiling(size=(256, 256, 256), overlap=0.0, multiple=256),
    runner="brain",
    sha256=SHA256["model.pt"],
    licence="MIT",
    citation=(
        "Fisch L, Zumdick S, Barkhau C, et al. deepbet: Fast brain extraction of T1-weighted MRI using Convolutional "
        "Neural Networks. Computers in Biology and Medicine, 2024."
    ),
    intended_use="Research only; not a medical device. Adult heads, T1-weighted MR.",
)


def weights_folder() -> Path | None:
    """Folder of the weights of the installed deepbet, or none if it is not installed or has no weights."""
    spec = find_spec("deepbet")
    if spec is None or not spec.submodule_search_locations:
        return None
    # deepbet's wheel lays its folder "data" beside the package, not into it
    folder = Path(next(iter(spec.submodule_search_locations))).parent / "data" / "models"
    return folder if all((folder / name).is_file() for name in SHA256) else None


def find() -> list[Model]:
    """`brain` if deepbet is installed, else nothing."""
    return [Model(spec=SPEC, folder=CARD, source="deepbet")] if weights_folder() is not None else []


def hint(model: str) -> str:
    """What to do to have a model of this source that was not found; empty if it has none of that name."""
    return f"Install it with: {INSTALL}" if model == SPEC.id else ""
