"""Small networks on one thread: with many small convolutions, threads cost more than they bring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.nnunet.fabricate import Made, make


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For these tests alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fitted weights: two folds, mirrored along one axis."""
    return make(tmp_path_factory.mktemp("trained"), Made(folds=("0", "1"), mirroring=(2,)))
