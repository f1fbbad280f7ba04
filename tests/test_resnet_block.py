"""A ResBlock in one native call against the operations it stands for: bit for bit."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from unets import build, inputs, run

import tfq
from tfq import blocks
from tfq.ops import _checks, resnet

UNETS = ("plain", "scale_shift", "skips_scale_shift", "attention", "cross")


def converted(name, dtype, **config):
    unet = build(name, dtype)
    kwargs = inputs(unet)
    tfq.convert(unet, tfq.TfqConfig(precision="uniform", **config), calibration=[kwargs])
    return unet


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the blocks that ran in one call."""
    shapes, original = [], resnet.resnet_block

    def counted(x, *args, **kwargs):
        shapes.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(blocks, "resnet_block", counted)
    return shapes


@pytest.mark.parametrize(
    "config", [{}, {"activation_ranges": "dynamic"}, {"weights": "int4"}], ids=str
)
@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_as_its_operations(name, dtype, config, calls, monkeypatch):
    unet = converted(name, dtype, **config)
    kwargs = inputs(unet)
    result = run(unet, kwargs)
    assert calls, "no block ran in one call"
    monkeypatch.setattr(blocks.ResnetBlock2D, "_is_one_call", lambda self, x, skip: False)
    calls.clear()
    assert torch.equal(result, run(unet, kwargs))
    assert not calls


def test_operands_must_be_on_the_cpu(monkeypatch):
    """Of a build with CUDA, where a layer's tensors may be on a card."""
    monkeypatch.setattr(_checks, "HAS_CUDA", True)
    arguments, keywords = block(2, 8, 4, 12, 5)
    x, *parts = arguments
    with FakeTensorMode():
        elsewhere = torch.empty(2, device="cuda")
    for position, part in enumerate(parts):
        for i in range(2):
            moved = [*parts]
            moved[position] = (*part[:i], elsewhere, *part[i + 1 :])
            with pytest.raises(NotImplementedError, match="got a tensor on 'cuda:0'; move it with"):
                resnet.resnet_block(x, *moved, **keywords)
    for name in ("x2", "temporal"):
        with pytest.raises(NotImplementedError, match="got a tensor on 'cuda:0'; move it with"):
            resnet.resnet_block(*arguments, **keywords | {name: elsewhere})


def operands(n, k, kernel=9):
    weight = torch.randint(-127, 128, (n, k * kernel), dtype=torch.int8)
    packed, weight_sum = tfq.ops.pack_weight(weight)
    return packed, torch.rand(n) * 0.01 + 0.001, weight_sum, None, torch.randn(n)


def block(batch, channels, channels2, n, size):
    def norm(width):
        return torch.rand(width) + 0.5, torch.randn(width), 4, 1e-5, None

    def image(width):
        return torch.randn(batch, width, size, size).contiguous(memory_format=torch.channels_last)

    total = channels + channels2
    arguments = (image(channels), norm(total), operands(n, total), norm(n), operands(n, n))
    parts = [operands(n, channels, 1)]
    if channels2:
        parts.append((*operands(n, channels2, 1)[:-1], None))
    return arguments, {
        "x2": image(channels2) if channels2 else None,
        "temporal": torch.randn(batch, n),
        "shortcuts": parts,
    }


@pytest.mark.parametrize(
    "channels, channels2, n, size", [(8, 0, 12, 24), (8, 4, 12, 24), (64, 0, 64, 3)]
)
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 9])
def test_an_image_depends_on_no_other(batch, channels, channels2, n, size, threads, guarded):
    # Few pixels: all images together; many: one by one, or one for each thread.
    arguments, keywords = block(batch, channels, channels2, n, size)
    result = resnet.resnet_block(*arguments, **keywords)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(resnet.resnet_block(*arguments, **keywords), result)
    for i in range(batch):
        one = {k: v[i : i + 1] if torch.is_tensor(v) else v for k, v in keywords.items()}
        x, *rest = arguments
        assert torch.equal(resnet.resnet_block(x[i : i + 1], *rest, **one), result[i : i + 1])


def test_no_image():
    arguments, keywords = block(0, 8, 4, 12, 5)
    assert resnet.resnet_block(*arguments, **keywords).shape == (0, 12, 5, 5)


def test_errors():
    arguments, keywords = block(2, 8, 4, 12, 5)
    x, norm1, conv1, norm2, conv2 = arguments
    with pytest.raises(
        ValueError, match=r"resnet_block: x2 \(2, 4, 4, 5\) does not match x \(2, 8, 5, 5\)"
    ):
        resnet.resnet_block(
            *arguments,
            **keywords
            | {"x2": keywords["x2"][:, :, 1:].contiguous(memory_format=torch.channels_last)},
        )
    with pytest.raises(ValueError, match="one shortcut for each source, got 1"):
        resnet.resnet_block(*arguments, **keywords | {"shortcuts": keywords["shortcuts"][:1]})
    with pytest.raises(ValueError, match="same channels, got 12 and 12|same channels, got 12"):
        resnet.resnet_block(*arguments, **keywords | {"shortcuts": ()})
    with pytest.raises(ValueError, match=r"temporal must be \(2, 12\) or \(1, 12\), got \(2, 11\)"):
        resnet.resnet_block(*arguments, **keywords | {"temporal": torch.zeros(2, 11)})
    with pytest.raises(ValueError, match="12 channels do not divide into 5 groups"):
        resnet.resnet_block(x, (*norm1[:2], 5, *norm1[3:]), conv1, norm2, conv2, **keywords)
    with pytest.raises(ValueError, match="packed weight for n=12, k=108"):
        resnet.resnet_block(x, norm1, operands(12, 15), norm2, conv2, **keywords)
