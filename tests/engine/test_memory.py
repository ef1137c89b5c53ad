"""Which errors mean lack of memory, and what is tried next."""

from __future__ import annotations

import pytest
import torch

from napari_medai.engine.memory import Setting, is_out_of_memory, smaller

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
    first = setting = Setting(CUDA, (64, 32), 4)
    way = []
    while (following := smaller(setting, first, (16, 16))) is not None:
        setting, note = following
        assert "ran out of memory" in note
        way.append((setting.device.type, setting.tile, setting.batch))
    assert way == [
        ("cuda", (64, 32), 2),
        ("cuda", (64, 32), 1),
        ("cuda", (32, 32), 1),
        ("cpu", (64, 32), 1),
        ("cpu", (32, 32), 1),
    ]


def test_a_network_of_fixed_size_goes_straight_to_the_cpu():
    first = Setting(CUDA, (128, 128, 128), 1)
    following = smaller(first, first, (128, 128, 128))
    assert following is not None
    assert following[0] == Setting(CPU, (128, 128, 128), 1)
    assert smaller(following[0], first, (128, 128, 128)) is None


def test_tiles_do_not_become_all_border():
    first = Setting(CPU, (16,), 1)
    second = smaller(first, first, (1,))
    assert second is not None
    assert second[0].tile == (8,)
    assert smaller(second[0], first, (1,)) is None
