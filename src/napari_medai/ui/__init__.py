"""The viewer's side of the package: napari and Qt live here and nowhere else."""
