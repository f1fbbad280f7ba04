"""Each PTX wrapper on the card against its emulation: the same inputs, the same bits."""

import shutil
import subprocess

import cmake_programs
import pytest
import simt_native
import torch

HOPPER = (9, 0)


@pytest.mark.parametrize(
    "program, units",
    [("conformance", ("device",)), ("conformance_sm90", ("device", "tensor_map"))],
)
def test_the_card_executes_what_the_emulation_does(tmp_path, program, units):
    nvcc, hopper = shutil.which("nvcc"), torch.cuda.get_device_capability() == HOPPER
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    if program == "conformance_sm90" and not hopper:
        pytest.skip("the card is not a Hopper")
    csrc = cmake_programs.ROOT / "csrc"
    command = [
        nvcc, "-std=c++17", "-fmad=false", f"-I{csrc}", '-DTFQ_CUDA_ARCHS="native"',
        "-gencode=arch=compute_90a,code=sm_90a" if hopper else "-arch=native",
        cmake_programs.ROOT / "tests" / "gpu" / f"{program}.cu",
        *(csrc / "cuda" / f"{unit}.cpp" for unit in units), "-o", tmp_path / program,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    card = cmake_programs.run(tmp_path, program).splitlines()
    emulation = cmake_programs.run(simt_native.build(), program).splitlines()
    assert [line.split()[0] for line in card] == [line.split()[0] for line in emulation]
    for on_card, emulated in zip(card, emulation, strict=True):
        assert on_card == emulated, on_card[:60]
