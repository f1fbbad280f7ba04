"""The programs that compare a card with its emulation, on the emulation alone; see tests/gpu."""

import cmake_programs
import pytest
import simt_native

SM90 = "conformance_sm90"


@pytest.mark.parametrize("bit", ["cleared", "set"])
def test_the_probe_of_small_images_prints_the_taps_of_the_whole_program(bit):
    folder = simt_native.build()
    whole = cmake_programs.run(folder, SM90).splitlines()
    taps = [line for line in whole if line.startswith("taps ")]
    assert cmake_programs.run(folder, SM90, bit).splitlines() == taps != whole
    assert len(taps) == 7 * 4 * 3 * 3
