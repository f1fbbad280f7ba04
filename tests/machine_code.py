"""What nvcc makes of a source, as nvdisasm shows it: messages, instructions, and the cheapest way through."""

import collections
import dataclasses
import heapq
import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
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


def compile_one(folder, source, arch):
    """(registers, spilled bytes, kernel) of each kernel; leaves the machine code in `folder`."""
    messages = compile_cubin(KERNELS / f"{source}.cu", arch, folder / f"{source}.{arch}.cubin")
    facts, name, spilled = [], None, 0
    for line in messages.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name, spilled = match.group(1), 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match.group(1)) + int(match.group(2))
        elif match := re.search(r"Used (\d+) registers", line):
            facts.append((int(match.group(1)), spilled, name))
    assert facts, f"{source} for sm_{arch}: no kernel in\n{messages}"
    return facts


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


def _blocks(kernel, begin, ends):
    """Index -> (opcodes, indices of what may follow; none: the end) of the blocks reached from `begin`."""
    code, labels = kernel
    leaders = {begin, *labels.values()}
    blocks, open_ends = {}, [begin]
    while open_ends:
        first = open_ends.pop()
        if first in blocks:
            continue
        opcodes, following, at = [], [], first
        while not (step := code[at]).opcode.startswith(ends):
            assert not step.opcode.startswith(("BRX", "CALL", "JM", "RET")), step
            if step.opcode != "NOP":
                opcodes.append(step.opcode)
            at += 1
            if step.opcode.startswith("BRA"):
                following = [labels[step.target]] + [at] * step.conditional
                break
            if step.opcode == "EXIT" and not step.conditional:
                break
            if at in leaders:
                following = [at]
                break
        blocks[first] = opcodes, following
        open_ends += following
    return blocks


def cheapest_path(kernel, begin, ends, run, wanted, before=None):
    """Instructions of the cheapest way from index `begin` to a return or an opcode of `ends`, among those on
    which no run is left out and each has what is `wanted`. None if there is no such way.

    `run`: (opcode, how many of it begin a run). `wanted`: opcode -> how many of it come after that, up to
    the next run; `before`: how many of it come between the run before, or the begin, and a run. Opcodes
    are beginnings of them. What is predicated counts: it takes its turn whether it does something or not.
    """
    opener, length = run
    before = before or {}
    assert not wanted.keys() & before.keys()
    wanted, before = list(wanted.items()), list(before.items())
    names, limits = zip(*wanted, *before, strict=True)
    zeros, split = (0,) * len(names), len(wanted)
    blocks = _blocks(kernel, begin, ends)
    most = _most_ahead(blocks, opener)

    def after(opcodes, done, counts):
        """(openers so far, counts since the last run began), or None if a run has not what it should."""
        for opcode in opcodes:
            if opcode.startswith(opener):
                if done % length == 0:
                    if (
                        counts[split:] != limits[split:]
                        or done
                        and counts[:split] != limits[:split]
                    ):
                        return None
                    counts = zeros
                done += 1
            for i, name in enumerate(names):
                if opcode.startswith(name) and (done or i >= split):
                    counts = (*counts[:i], counts[i] + 1, *counts[i + 1 :])
                    if counts[i] > limits[i]:
                        return None
        return done, counts

    end = -1
    waiting, seen = [(0, begin, 0, zeros)], set()
    while waiting:
        cost, at, done, counts = heapq.heappop(waiting)
        if at == end:
            return cost
        if (at, done, counts) in seen or done + most[at] < most[begin]:
            continue
        seen.add((at, done, counts))
        opcodes, following = blocks[at]
        if (state := after(opcodes, done, counts)) is None:
            continue
        if not following and (state[0], state[1][:split]) == (most[begin], limits[:split]):
            following = [end]
        for next_at in following:
            heapq.heappush(waiting, (cost + len(opcodes), next_at, *state))
    return None


def _most_ahead(blocks, opcode):
    """Index of a block -> the most of `opcode` from its begin on; there must be none in a loop."""
    own = {at: sum(op.startswith(opcode) for op in ops) for at, (ops, _) in blocks.items()}
    most, changed = dict.fromkeys(blocks, 0), True
    while changed:
        changed = False
        for at in sorted(blocks, reverse=True):
            ahead = own[at] + max((most[next_at] for next_at in blocks[at][1]), default=0)
            assert ahead <= sum(own.values()), f"{opcode} in a loop"
            changed |= ahead != most[at]
            most[at] = ahead
    return most
