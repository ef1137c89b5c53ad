"""Which bundles of MONAI's model zoo run without any permission, and why each of the others does not.

    python -m benchmarks.monai_zoo FOLDER

FOLDER is the folder ``models`` of a copy of the zoo's repository. Nothing of a bundle is run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from napari_medai.models.monai import probe


def main(folder: Path) -> None:
    """Print a table in Markdown."""
    bundles = sorted(path for path in folder.iterdir() if (path / "configs" / "metadata.json").is_file())
    rows, runs = [], 0
    for bundle in bundles:
        needs = [need for need in probe(bundle).needs if not need.where.startswith("models/")]  # weights apart
        runs += not needs
        if not needs:
            rows.append(f"| `{bundle.name}` | yes | |")
            continue
        missing = any(not need.capability for need in needs)
        why = "<br>".join(f"`{need.where.partition('#')[2]}`: {need.why}" for need in needs)
        rows.append(f"| `{bundle.name}` | {'no' if missing else 'asks for `python`'} | {why} |")
    print(f"{runs} of {len(bundles)} bundles run without a permission.\n")
    print("| bundle | runs | what keeps it from it |\n|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
