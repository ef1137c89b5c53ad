"""Maps to labels: small ones, whose labels can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.errors import ModelError
from napari_medai.engine.decode import decode_maps
from napari_medai.engine.passes import onto_tile, plan_passes
from napari_medai.models.sizes import Size


def test_hills_of_a_distance_are_objects():
    y, x = np.mgrid[:30, :60]
    discs = [np.hypot(y - 15, x - column) for column in (18, 40)]
    depth = np.maximum(*(np.maximum(0, 12 - disc) for disc in discs)).astype(np.float32)
    foreground = (depth > 0).astype(np.float32)
    labels = decode_maps(np.stack([foreground, depth]), {"kind": "depth", "foreground": 0, "depth": 1})
    assert labels.max() == 2
    assert labels[15, 18] != labels[15, 40]
    np.testing.assert_array_equal(labels > 0, foreground > 0)


def test_the_largest_channel_wins_and_the_background_is_0():
    maps = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    assert decode_maps(maps, {"kind": "argmax", "background": 0}).tolist() == [0, 1, 2]
    assert decode_maps(maps, {"kind": "argmax", "background": 1}).tolist() == [1, 0, 2]
    # without a background: nothing reaches 0.65 in the last two
    assert decode_maps(maps, {"kind": "argmax", "background": None}, threshold=0.65).tolist() == [1, 0, 0]


def test_values_outside_of_0_and_1_are_logits_and_that_is_said():
    notes = []
    labels = decode_maps(np.array([[-3.0, -0.1, 0.1, 3.0]]), {"kind": "threshold", "channel": 0}, note=notes.append)
    assert labels.tolist() == [0, 0, 1, 1]
    assert notes == ["values outside of 0..1 were taken as logits"]
    decode_maps(np.array([[0.0, 1.0005]]), {"kind": "threshold", "channel": 0}, note=notes.append)
    assert len(notes) == 1


def test_small_pieces_are_removed_when_asked():
    maps = np.zeros((1, 8, 8))
    maps[0, 1:4, 1:4] = maps[0, 6, 6] = 1
    how = {"kind": "threshold", "channel": 0}
    assert decode_maps(maps, how).sum() == 10
    assert decode_maps(maps, how, min_size=2).sum() == 9


@pytest.mark.parametrize(
    ("how", "message"),
    [({"kind": "rays"}, "'rays' cannot be made"), ({"kind": "threshold", "channel": 1}, "gave 1 channels")],
)
def test_what_cannot_be_read_is_told(how, message):
    with pytest.raises(ModelError, match=message):
        decode_maps(np.zeros((1, 4, 4)), how)


@pytest.mark.parametrize(
    ("shape", "size", "halo", "tile", "padded"),
    [
        ((20, 20), Size(kind="step", least=16, step=8), 0, (24, 24), (24, 24)),
        ((20, 20), Size(kind="step", least=20, step=16), 2, (36, 36), (36, 36)),
        ((20, 50), Size(kind="fixed", least=32), 4, (32, 32), (32, 58)),
    ],
)
def test_images_are_brought_to_sizes_that_fit(shape, size, halo, tile, padded):
    passes = plan_passes(shape, [size] * 2, [halo] * 2)
    assert passes.tile == tile
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    assert passes.pad(array).shape[1:] == padded
    np.testing.assert_array_equal(passes.crop(passes.pad(array)), array)


def test_labels_larger_than_the_one_size_of_a_network_are_refused():
    with pytest.raises(ModelError, match="cannot be put together from tiles; this image has 40"):
        plan_passes((40, 40), [Size(kind="fixed", least=32)] * 2, [0, 0], whole=True)


def test_outputs_of_other_sizes_come_onto_the_tile():
    small = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    middle = onto_tile(small, (4, 4), (1, 1), (-2, -2))
    assert middle[0, 1:3, 1:3].tolist() == small[0].tolist()
    fine = np.repeat(np.repeat(small, 2, 1), 2, 2)
    assert onto_tile(fine, (2, 2), (2, 2), (0, 0)).tolist() == small.tolist()
    with pytest.raises(ModelError, match="made 2 x 2 out of a tile of 4 x 4; its description says 4 x 4"):
        onto_tile(small, (4, 4), (1, 1), (0, 0))
