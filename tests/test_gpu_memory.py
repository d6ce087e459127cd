"""What nvidia-smi says of the GPUs' memory: here a script that says what a file says."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from evalswap.serving.gpu_memory import memory_in_use, wait_until_freed


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that has what nvidia-smi prints."""
    program, file = tmp_path / "nvidia-smi", tmp_path / "told"
    program.write_text(f'#!/bin/sh\n[ "$1" = --query-gpu=memory.used ] && exec /bin/cat "{file}"\n')
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    file.write_text("523\n70211\n")
    return file


def test_memory_of_each_gpu(told: Path) -> None:
    assert memory_in_use() == [523, 70211]
    told.write_text("[Not Supported]\n")
    assert memory_in_use() is None


def test_gpus_of_others_are_not_looked_at(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = told.parent / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nfor word; do [ "$word" = --id=3,1 ] && exec /bin/cat "{told}"; done\nexit 6\n')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert memory_in_use() == [523, 70211]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert memory_in_use() is None


def test_without_nvidia_smi_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory_in_use() is None
    assert wait_until_freed(None, 10) is None
    assert wait_until_freed([0], 10) is None


def test_what_is_held_is_waited_for(told: Path) -> None:
    assert wait_until_freed([500, 600], 0.1) == "GPU 1: 70211 MiB, 600 MiB before the engine started"
    threading.Timer(0.7, told.write_text, ["523\n900\n"]).start()
    began = time.monotonic()
    assert wait_until_freed([500, 600], 20) is None
    assert 0.5 < time.monotonic() - began < 10
