"""What nvcc makes of a source, as nvdisasm shows it: messages and instructions."""

import collections
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ("-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}")


def tool(name):
    packaged = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / name
    path = str(packaged) if packaged.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (extra cuda-build)")
    return path


def compile_cubin(source, arch, cubin):
    """Compile for sm_`arch`; what ptxas -v says. AssertionError for errors, warnings, and what ptxas only
    informs of though it costs as much: wgmma serialised, its waits injected, setmaxnreg ignored."""
    command = [tool("nvcc"), *FLAGS, "-Xptxas", "-v", f"-arch=sm_{arch}", "-cubin", "-o", cubin]
    result = subprocess.run([*command, source], capture_output=True, text=True)
    messages = result.stdout + result.stderr
    assert result.returncode == 0, f"{source} for sm_{arch}:\n{messages}"
    complaint = re.search(r".*(\(C75\d\d\)|warning).*", messages)
    assert complaint is None, f"{source} for sm_{arch}: {complaint[0]}"
    return messages


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers
    conditional: bool
    target: str | None  # the label a branch goes to


def kernels(cubin):
    """Name -> (instructions, label -> index of an instruction) of each kernel."""
    command = [tool("nvdisasm"), "-c", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line_of_code = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Zx0-9_.]*)(.*)")
    found, code, labels = {}, None, None
    for line in text.splitlines():
        if match := re.match(r"\.text\.(\S+):", line):
            code, labels = found[match[1]] = [], {}
        elif code is not None and (match := re.match(r"(\.L_\w+):", line)):
            labels[match[1]] = len(code)
        elif match := line_of_code.match(line):
            guard, opcode, operands = match.groups()
            target = re.search(r"`\((\.L_\w+)\)", operands)
            # A branch may have predicates before its target, too.
            conditional = guard is not None or bool(operands.split("`")[0].strip(" ;"))
            code.append(Instruction(opcode, conditional, target and target[1]))
    return found


def opcodes_of(kernel):
    """How often each opcode, with its modifiers, stands in one of :func:`kernels`."""
    return collections.Counter(instruction.opcode for instruction in kernel[0])


def instructions(cubin):
    """Kernel -> its :func:`opcodes_of`."""
    return {name: opcodes_of(kernel) for name, kernel in kernels(cubin).items()}


def total(counter, prefix):
    return sum(count for opcode, count in counter.items() if opcode.startswith(prefix))
