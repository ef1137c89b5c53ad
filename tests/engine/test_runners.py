"""The table of runners."""

from __future__ import annotations

import pytest

from napari_medai.core.errors import ModelError
from napari_medai.engine import RUNNERS, load_runner


@pytest.mark.parametrize("name", RUNNERS)
def test_every_row_leads_to_a_function(name):
    assert callable(load_runner(name))


def test_an_unknown_name_lists_those_that_exist():
    with pytest.raises(ModelError, match=r"runner 'other'; there are: .*brain"):
        load_runner("other")
