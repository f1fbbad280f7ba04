"""Each PTX wrapper on the card against its emulation: the same inputs, the same bits."""

import shutil
import subprocess

import pytest
import simt_native


def test_the_card_executes_what_the_emulation_does(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    source = simt_native.ROOT / "tests" / "gpu" / "conformance.cu"
    csrc = simt_native.ROOT / "csrc"
    definition = '-DTFQ_CUDA_ARCHS="native"'
    command = [
        nvcc, "-std=c++17", "-fmad=false", "-arch=native", f"-I{csrc}", definition, source,
        csrc / "cuda" / "device.cpp", "-o", tmp_path / "conformance",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    card = simt_native.run(tmp_path, "conformance").splitlines()
    emulation = simt_native.run(simt_native.build(), "conformance").splitlines()
    assert [line.split()[0] for line in card] == [line.split()[0] for line in emulation]
    for on_card, emulated in zip(card, emulation, strict=True):
        assert on_card == emulated, on_card.split()[0]
