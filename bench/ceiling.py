"""What the machine can do at most, measured: see ceiling.cpp."""

import os
import pathlib
import subprocess
import tempfile

SOURCE = pathlib.Path(__file__).with_name("ceiling.cpp")


def measure(threads):
    """Build and run ceiling.cpp with the C++ compiler of the system (``CXX``, else ``c++``).

    Returns
    -------
    dict
        ``avx512vnni`` and ``avx2`` in GOP/s (a level the CPU lacks is absent), ``memory`` in GB/s, of
        `threads` threads together.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "ceiling"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-O2", "-pthread", SOURCE, "-o", program], check=True)
        done = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}
