"""Tests that need a card: skipped, with a reason, where there is none."""

import pathlib
import sys

import pytest
import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))  # operands, tolerance, shapes


def pytest_collection_modifyitems(items):
    from tfq._ext import _C

    reason = None
    if not _C.cuda_available():
        reason = "this build has no CUDA kernels"
    elif not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    if reason:
        here = pathlib.Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))
