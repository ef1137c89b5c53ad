"""The table of the catalogue in docs/models.md: `python tests/models/test_catalogue_docs.py` writes it anew."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from napari_medai.models.catalogue import Entry, entries, readable

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
TITLES = {
    "brainchop": "brainchop",
    "bioimageio": "bioimage.io",
    "package": "Python packages",
    "monai": "MONAI's zoo",
    "nnunet": "TotalSegmentator",
}


def table() -> str:
    lines: list[str] = []
    for source, group in groupby(entries(), key=lambda entry: entry.source):
        lines += [f"### {TITLES[source]}", "", "| id | what | for | stage | size | licence | class | status |"]
        lines += ["|---|---|---|---|---|---|---|---|", *map(row, group), ""]
    return "\n".join(lines)


def row(entry: Entry) -> str:
    made_for = ", ".join(text for text in (entry.modality, entry.target) if text)
    size = "`pip`" if entry.install else readable(entry.size) if entry.size else "not published"
    cells = (
        f"`{entry.id}`",
        entry.title,
        made_for,
        entry.stage or "none",
        size,
        entry.licence,
        entry.safety,
        entry.status,
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def test_the_table_in_the_docs_is_the_catalogue() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python tests/models/test_catalogue_docs.py"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
