"""Which errors mean lack of memory, and what is tried next."""

from __future__ import annotations

import pytest
import torch

from napari_medai.engine.memory import Setting, is_out_of_memory, smaller, smaller_tile
from napari_medai.engine.planning import SMALL_MB, Cost, Made, Room, make_plan
from napari_medai.engine.tiling import plan_tiles

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_lack_of_memory_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_not_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_the_way_down_from_an_accelerator():
    first = setting = Setting(CUDA, (64, 32), 4, keep="device")
    way = []
    while (following := smaller(setting, first, (16, 16))) is not None:
        setting, note = following
        assert "ran out of memory" in note
        way.append((setting.device.type, setting.tile, setting.batch, setting.sums, setting.keep))
    assert way == [
        ("cuda", (64, 32), 2, "float32", "device"),
        ("cuda", (64, 32), 1, "float32", "device"),
        ("cuda", (32, 32), 1, "float32", "device"),
        ("cuda", (32, 32), 1, "float16", "device"),
        ("cuda", (32, 32), 1, "float16", "host"),
        ("cpu", (64, 32), 1, "float32", "host"),
        ("cpu", (32, 32), 1, "float32", "host"),
        ("cpu", (32, 32), 1, "float16", "host"),
        ("cpu", (32, 32), 1, "float16", "disk"),
    ]


def test_a_network_of_fixed_size_keeps_its_tile():
    first = setting = Setting(CUDA, (128, 128, 128), 1)
    while (following := smaller(setting, first, (128, 128, 128))) is not None:
        setting = following[0]
        assert setting.tile == (128, 128, 128)
    assert (setting.device, setting.keep) == (CPU, "disk")


def test_tiles_do_not_become_all_border():
    assert smaller_tile((16,), (1,)) == (8,)
    assert smaller_tile((8,), (1,)) is None
    # of 64 voxels 32 are left, of which a reach of 12 to each side leaves 8
    assert smaller_tile((64,), (8,), (12,)) == (32,)
    assert smaller_tile((64,), (8,), (13,)) is None


def test_a_gpu_that_shares_the_machines_memory_is_planned_as_the_machine_is():
    tiles = plan_tiles((96, 96, 96), (64, 64, 64), 0.5, 8)
    setting = Setting(torch.device("mps"), (64, 64, 64), 4, keep="device")
    cost = Cost((64, 64, 64), 1, 2, held_mb=300.0, host_mb=20.0, seconds=1.0)
    plan = make_plan(setting, tiles, 0, cost, Made(), Room(held_mb=300.0, limit_mb=2000.0), "float32")
    assert plan.fits
    assert plan.device_mb == 0
    # what is held, four tiles at once, the sums of 2 channels in 64 planes of 96 x 96, a remembered tile of one value
    assert plan.host_mb == pytest.approx(300 + SMALL_MB + 80 + 4.5 + 2)
