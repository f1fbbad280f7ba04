"""Every tile, schedule, copy mode, split of k and epilogue of the CUDA products, on ragged shapes.

    python tests/simt_sweep.py [--seed 0]

Too long for the tests, which take pairs of these where this takes the product. Prints its time.
"""

import argparse
import itertools
import time

import simt_native
import torch
from operands import conv_operands, gemm_operands
from shapes import KERNELS, PADDINGS, STRIDES
from simt_cases import TILES, TILES_SM90, check_epilogue, epilogues

from tfq import reference

GEMMS = list(itertools.product((1, 63, 65, 129), (8, 40, 168), (16, 80, 336)))
SPLITS = (1, 2, 4)


def gemms(simt, tile):
    depth = 128 if tile in TILES_SM90 else 64  # of a part of k
    for shape, splits in itertools.product(GEMMS, SPLITS):
        if splits <= -(-shape[2] // depth):
            yield simt.gemm_s8, reference.gemm_s8, gemm_operands(*shape), splits, shape


def convs(simt, tile):
    enlarged = (1,) if tile in TILES_SM90 else (1, 2)  # Hopper's kernel enlarges nothing
    for kernel, stride, padding, upsample in itertools.product(
        KERNELS, STRIDES, PADDINGS, enlarged
    ):
        shape = (2, 32, 5, 7, 40, kernel, stride, padding, upsample)
        yield simt.conv2d_s8, reference.conv2d_s8, conv_operands(shape), 1, shape


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    torch.manual_seed(parser.parse_args().seed)
    simt, begin, problems = simt_native.Simt(simt_native.build()), time.perf_counter(), 0
    for tile, (order, lazy) in itertools.product(TILES + TILES_SM90, simt_native.SCHEDULES):
        simt.native.set_device(*(simt_native.HOPPER if tile in TILES_SM90 else simt_native.DEVICE))
        simt.schedule(order, lazy, seed=problems)
        for cases in (gemms, convs):
            for function, expected, operands, splits, shape in cases(simt, tile):
                actual = function(**operands, tile=tile, splits=splits)
                assert torch.equal(actual, expected(**operands)), (tile, order, lazy, shape, splits)
                problems += 1
        for epilogue, splits in itertools.product(epilogues([(1, 0), (1, 1), (2, 2)]), (1, 2)):
            for operands in (
                gemm_operands(66, 72, 144),
                conv_operands((2, 32, 3, 5, 72, 3, 1, 1, 1)),
            ):
                check_epilogue(simt, operands, epilogue, tile, splits=splits)
                problems += 1
        assert not bool(simt.workspace.any()), (tile, order, lazy)
        seconds = time.perf_counter() - begin
        print(f"{tile}, order {order}, lazy {lazy}: right; {problems} problems, {seconds:.0f} s")


if __name__ == "__main__":
    main()
