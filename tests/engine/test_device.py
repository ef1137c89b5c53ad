"""Devices: which are there, and which one is taken."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from napari_medai.core.errors import DeviceError
from napari_medai.engine.device import DeviceInfo, available_devices, choose_device, free_memory_mb, release_memory


def test_the_cpu_is_always_there_and_last():
    last = available_devices()[-1]
    assert last.kind == last.name == "cpu"
    assert 0 < last.free_mb <= last.total_mb


def test_auto_takes_the_first_device():
    assert choose_device("auto") == torch.device(available_devices()[0].name)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wish", ["cuda", "mps"])
def test_an_absent_device_is_named_beside_those_present(wish):
    if any(device.kind == wish for device in available_devices()):
        pytest.skip(f"{wish} is here")
    with pytest.raises(DeviceError, match=rf"'{wish}' was asked for and is not here; there are: .*\(cpu\)"):
        choose_device(wish)


def test_cuda_with_the_most_free_memory_is_taken(monkeypatch):
    free = {0: (1 * 2**30, 8 * 2**30), 1: (6 * 2**30, 8 * 2**30)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: free[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("auto") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert str(available_devices()[0]) == "Card 1 (cuda:1), 6.0 of 8.0 GiB free"


def test_a_device_says_how_much_is_free():
    assert str(DeviceInfo("mps", "Apple GPU", 1024, 2048)) == "Apple GPU (mps), 1.0 of 2.0 GiB free"
    assert free_memory_mb(torch.device("cpu")) > 0
    release_memory(torch.device("cpu"))


def test_importing_it_leaves_torch_alone():
    code = "import sys, napari_medai.engine, napari_medai.engine.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
