"""What the dock of models lists: what is here, what waits for a permission, what can be had. Knows nothing of Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from napari_medai.core.stage import Progress
from napari_medai.models import find_models
from napari_medai.models.catalogue import Entry, entries, readable
from napari_medai.models.records import status
from napari_medai.models.spec import Model, ModelSpec
from napari_medai.models.store import Added, survey
from napari_medai.ui.card import card_text

State = Literal["ready", "asks", "damaged", "download", "install"]
# In the order of the list
STATES: dict[State, str] = {
    "ready": "ready",
    "asks": "needs a permission",
    "damaged": "cannot be opened",
    "download": "can be downloaded",
    "install": "can be installed",
}


@dataclass(frozen=True)
class ModelRow:
    """A line of the list.

    Attributes
    ----------
    id, title, stage, made_for, size, licence : str
        As they are shown.
    state : State
        What can be done with it.
    card : str
        The card, or what the catalogue says (Markdown).
    spec : ModelSpec, optional
        Of what is here.
    added : Added, optional
        What was added, and can be removed.
    entry : Entry, optional
        Where it can be had.
    """

    id: str
    title: str
    stage: str
    made_for: str
    size: str
    licence: str
    state: State
    card: str
    spec: ModelSpec | None = None
    added: Added | None = None
    entry: Entry | None = None

    def holds(self, words: str) -> bool:
        """Whether every one of some words stands in what is shown."""
        text = " ".join((self.id, self.title, self.stage, self.made_for, self.licence, STATES[self.state])).lower()
        return all(word in text for word in words.lower().split())


def rows(progress: Progress) -> list[ModelRow]:
    """Everything there is, what can be run first. Reads packages, executes nothing, contacts nobody."""
    added = {item.id: item for item in survey()}
    progress.check()
    models = find_models()
    here = [_ready(model, added.get(model.id)) for model in models]
    here += [_waiting(item) for item in added.values() if item.model is None]
    known = {row.id for row in here} | {item.entry.id for item in added.values() if item.entry is not None}
    had = [_available(entry) for entry in entries() if entry.id not in known and entry.model not in known]
    order = list(STATES)
    return sorted([*here, *had], key=lambda row: order.index(row.state))


def _ready(model: Model, added: Added | None) -> ModelRow:
    spec = model.spec
    weights = model.weights
    try:
        size = readable(weights.stat().st_size) if weights is not None else ""
    except OSError:
        size = "?"
    return ModelRow(
        model.id, spec.title, spec.stage, _made_for(spec), size, spec.licence, "ready", card_text(model), spec, added
    )


def _waiting(item: Added) -> ModelRow:
    spec = item.spec
    if spec is None:
        return ModelRow(item.id, item.id, "", "", "", "", "damaged", f"# {item.id}\n\n{item.problem}\n", added=item)
    asks = bool(spec.needs) and all(need.capability for need in spec.needs)
    listing = "\n".join(f"- `{need.where}`: {need.why}" for need in spec.needs)
    why = "It carries what is not run unless you allow it:" if asks else "It cannot be run here:"
    card = f"# {spec.title}\n\n{spec.summary}\n\n{why}\n\n{listing or item.problem}\n"
    state: State = "asks" if asks else "damaged"
    return ModelRow(item.id, spec.title, spec.stage, _made_for(spec), "", spec.licence, state, card, spec, item)


def _available(entry: Entry) -> ModelRow:
    facts = {
        "Licence": entry.licence,
        "Made for": ", ".join(text for text in (entry.modality, entry.target) if text),
        "Trained on": entry.training_data,
        "Measured by its makers": entry.metrics,
        "Please cite": entry.citation,
        "Safety": entry.safety,
        "Read about it": entry.homepage,
        "Note": entry.notes,
    }
    listing = "\n".join(f"- **{name}:** {value}" for name, value in facts.items() if value)
    unsure = ""
    if status(entry) == "unverified":
        unsure = "\n\n*Unverified: these files have not been run by this program yet.*"
    use = entry.intended_use or "Research only; not a medical device."
    card = f"# {entry.title}\n\n{entry.summary}{unsure}\n\n{listing}\n\n{use}\n"
    if entry.install:
        card += f"\nInstall it with `{entry.add_command}`, then start napari again.\n"
    state: State = "install" if entry.install else "download"
    made_for = ", ".join(text for text in (entry.modality, entry.target) if text)
    size = readable(entry.size) if entry.files else ""
    return ModelRow(entry.id, entry.title, entry.stage, made_for, size, entry.licence, state, card, entry=entry)


def _made_for(spec: ModelSpec) -> str:
    space = " or ".join(f"{n}-D" for n in spec.accepts.ndim)
    return ", ".join([space, *spec.accepts.modality, *(part.lower() for part in spec.accepts.body_part)])
