"""``python -m napari_medai.cli``."""

from napari_medai.cli import main

main()
