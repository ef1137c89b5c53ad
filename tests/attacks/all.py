"""Importing it fills `corpus.ATTACKS`."""

from tests.attacks import (  # noqa: F401
    archives,
    bioimageio_packages,
    manifests,
    monai_bundles,
    nnunet_folders,
    onnx_files,
    programs,
)
