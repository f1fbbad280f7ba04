"""The binary and the source tree: what is linked, which instructions are where, file sizes."""

import pathlib
import re
import shutil
import subprocess

import pytest

from tfq._ext import _C

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULE = _C.__file__
MAX_LINES = {
    ".py": 400,
    ".cpp": 600,
    ".cu": 600,
    ".h": 600,
    ".cuh": 600,
    ".inc": 600,
    ".cmake": 400,
    ".txt": 400,
}
SOURCE_FOLDERS = ("tfq", "csrc", "cmake", "bench", "tests")

# Registers and (with the VEX and EVEX prefix) instructions the x86-64 baseline does not have.
BEYOND_BASELINE = re.compile(r"%[yz]mm\d|%tmm\d|%k[0-7]|^\s+[0-9a-f]+:\s+v[a-z]")
FUNCTION = re.compile(r"^([0-9a-f]+) <.+>:$")
ISA_FILES = {"avx2.cpp", "avx512.cpp", "avx512vnni.cpp", "amx.cpp"}


def run(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_links_neither_torch_nor_cuda():
    libraries = run("ldd", MODULE)
    assert "libgomp" in libraries or "libomp" in libraries
    for library in ("libtorch", "libc10", "libcuda", "libcudart", "libcublas", "not found"):
        assert library not in libraries


def test_exports_only_its_entry_point():
    defined = run("nm", "-D", "--defined-only", MODULE)
    names = [line.split()[-1] for line in defined.splitlines()]
    assert [name for name in names if "tfq" in name] == []
    assert "PyInit__C" in names


def functions_by_address():
    """(source file, name) of each function; no file for one that was linked for all of them."""
    functions, file = {}, None
    for line in (
        run("readelf", "--wide", "--symbols", MODULE).partition("'.symtab'")[2].splitlines()
    ):
        match line.split():
            case [_, _, _, "FILE", _, _, _, *name]:
                file = name[0] if name else None
            case [_, address, _, "FUNC", "LOCAL", _, _, name, *_]:
                functions[int(address, 16)] = (file, name)
            case [_, address, _, "FUNC", _, _, _, name, *_]:
                functions[int(address, 16)] = (None, name)
    return functions


def functions_beyond_baseline():
    """Addresses of the functions that older x86-64 machines cannot run."""
    found, address = set(), None
    for line in run("objdump", "-d", "--no-show-raw-insn", MODULE).splitlines():
        heading = FUNCTION.match(line)
        if heading:
            address = int(heading.group(1), 16)
        elif BEYOND_BASELINE.search(line):
            found.add(address)
    return found


def test_instructions_stay_in_the_files_of_their_level():
    """Code compiled for an instruction set, but linked for everybody, crashes older machines.

    That happens to whatever has external linkage (a template of the standard library, an inline
    function of a shared header) and is compiled in one of the files with instruction-set flags.
    """
    functions = functions_by_address()
    if not any(file in ISA_FILES for file, _ in functions.values()):
        pytest.skip("the module is stripped")
    found = {
        functions.get(address, (None, hex(address))) for address in functions_beyond_baseline()
    }
    assert {file for file, _ in found} >= ISA_FILES, "a level has no code"
    assert sorted(name for file, name in found if file not in ISA_FILES) == []


@pytest.mark.parametrize("folder", SOURCE_FOLDERS)
def test_file_sizes(folder):
    files = [
        path for path in (ROOT / folder).rglob("*") if path.suffix in MAX_LINES and path.is_file()
    ]
    assert files, f"no source files in {folder}"
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text().splitlines())) > MAX_LINES[path.suffix]
    }
    assert too_long == {}


def test_every_kernel_is_in_a_family_and_a_level():
    kernels = _C.kernels()
    assert len({name for _, name, _ in kernels}) == len(kernels)
    families = {family for family, _, _ in kernels}
    assert families == {
        "gemm_s8", "winograd_s16", "expand_s4", "epilogue", "quantize", "group_norm", "layer_norm", "geglu",
        "temporal_gather", "dequantize_weight", "attention_s8",
    }  # fmt: skip
    for family in families:
        levels = [level for f, _, level in kernels if f == family]
        assert levels[0] == "scalar" and len(set(levels)) == len(levels)
        assert all(name.startswith(family) for f, name, _ in kernels if f == family)


def configure(tmp_path, value):
    command = ["cmake", "-S", ROOT, "-B", tmp_path, f"-DTFQ_CUDA={value}", "-DTFQ_SANITIZE=ON"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_cuda_can_be_switched_off_in_lower_case(tmp_path):
    code, output = configure(tmp_path, "off")
    assert code == 0 and "tfq CUDA: off (TFQ_CUDA=OFF)" in output, output


def test_cuda_is_no_other_word(tmp_path):
    code, output = configure(tmp_path, "bogus")
    assert code != 0 and "TFQ_CUDA must be AUTO, ON or OFF, got 'bogus'" in output, output
