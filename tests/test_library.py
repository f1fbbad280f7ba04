"""torch.ops.tfq: schemas, fakes, and what torch.compile makes of the operations and of a model."""

import pytest
import torch
import torch._dynamo
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    layer_norm_operands,
    packed_weight,
    quantized_table_operands,
    random_images,
    random_qparams,
    strided_rows,
    weight_operands_s4,
)
from tolerance import assert_same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tfq
from tfq import ops, temporal
from tfq.ops import library

STEPS = 5
KNOWN = (0.0, 200.0, 400.0, 600.0, 800.0)  # of a DDIMScheduler with STEPS steps
UNKNOWN = 7.0


def norm(shape, dtype=torch.float32, per_sample=False, tokens=False, **rest):
    operands = group_norm_operands(shape, dtype, per_sample)
    if tokens:
        for name in ("x", "x2"):
            if operands[name] is not None:
                operands[name] = operands[name].permute(0, 2, 3, 1).flatten(1, 2)
    return operands | rest


def conv(shape, **rest):
    operands = conv_operands(shape, rest.pop("groups", None))
    like = ops.conv2d_s8(**operands)
    if rest.pop("residual", False):
        rest["residual"] = torch.randn_like(like)
    if rest.pop("temporal", False):
        rest["temporal"] = strided_rows(torch.randn(like.shape[:2]))
    return operands | rest


# Operation -> makers of its keyword arguments. Among them are layouts that are both contiguous and
# channels_last (one channel, one pixel), where a fake can have the right shape and wrong strides.
CASES = {
    "quantize": [
        lambda: {"x": torch.randn(6, 10)},
        lambda: {"x": torch.randn(6, 10).bfloat16(), "groups": 3},
        lambda: {"x": random_images(2, 5, 3, 4, torch.float32)},
        lambda: {"x": torch.randn(2, 1, 3, 4)},
        lambda: {"x": random_images(2, 5, 1, 1, torch.float32)},
        lambda: {"x": torch.randn(2, 3, 7), "qparams": random_qparams(1)},
        lambda: {
            "x": random_images(2, 5, 3, 4, torch.float32),
            "qparams": strided_rows(random_qparams(2)),
        },
    ],
    "group_norm_silu_quantize": [
        lambda: norm((2, 33, 0, 3, 3, 11)),
        lambda: norm((2, 40, 24, 6, 5, 8), torch.bfloat16, silu=False),
        lambda: norm((2, 17, 15, 4, 9, 2), per_sample=True, qparams=random_qparams(2)),
        lambda: norm((2, 6, 0, 1, 1, 2), qparams=random_qparams(1)),
        lambda: norm((2, 12, 4, 3, 5, 4), tokens=True),
        lambda: norm((1, 1, 0, 4, 3, 1), tokens=True, qparams=random_qparams(1)),
    ],
    "layer_norm_quantize": [
        lambda: layer_norm_operands(7, 20),
        lambda: {"x": torch.randn(2, 3, 20).bfloat16(), "weight": None, "bias": None, "eps": 1e-3},
        lambda: layer_norm_operands(8, 20) | {"qparams": random_qparams(2)},
    ],
    "geglu_quantize": [
        lambda: {"x": torch.randn(7, 20)},
        lambda: {"x": torch.randn(2, 3, 20).bfloat16()},
        lambda: {"x": torch.randn(2, 3, 20), "qparams": random_qparams(2)},
    ],
    "temporal_gather": [
        lambda: {"table": torch.randn(4, 6), "rows": torch.tensor([3, 0, 3])},
        lambda: quantized_table_operands(4, [5, 0, 1], [3, 0, 3]),
    ],
    "attention_s8": [
        lambda: attention_operands(2, 3, 5, 7, 4),
        lambda: attention_operands(1, 1, 3, 3, 1, torch.bfloat16) | {"out_dtype": torch.float32},
        lambda: attention_operands(1, 2, 6, 20, 8) | {"scale": 0.3, "out_dtype": torch.bfloat16},
    ],
    "dequantize_weight": [
        lambda: packed_weight((17, 70)),
        lambda: packed_weight((17, 3, 2, 3), dtype=torch.bfloat16),
        lambda: packed_weight((5, 64), four_bits=True, dtype=torch.bfloat16),
        lambda: packed_weight((5, 8, 1, 1), four_bits=True),
    ],
    "gemm_s8": [
        lambda: gemm_operands(6, 5, 64),
        lambda: gemm_operands(6, 17, 20, groups=3) | {"bias": None, "out_dtype": torch.bfloat16},
        lambda: (
            gemm_operands(6, 5, 64)
            | {"temporal": strided_rows(torch.randn(2, 5)), "residual": torch.randn(6, 5)}
        ),
        lambda: (
            gemm_operands(6, 5, 64) | {"out_dtype": torch.uint8, "out_qparams": random_qparams(1)}
        ),
        lambda: gemm_operands(6, 5, 64) | weight_operands_s4((5, 64)),
        lambda: (
            gemm_operands(6, 5, 64)
            | {"temporal": torch.randn(4, 5), "temporal_rows": torch.tensor([3, 0])}
            | {"return_quantized": True, "out_qparams": random_qparams(1), "activation": "silu"}
        ),
        lambda: (
            gemm_operands(6, 5, 64) | {"x": torch.randint(0, 256, (2, 3, 64), dtype=torch.uint8)}
        ),
    ],
    "conv2d_s8": [
        lambda: conv((2, 8, 4, 6, 5, 3, 1, 1, 1), residual=True, temporal=True),
        lambda: conv((2, 8, 5, 4, 17, (2, 3), (2, 1), (0, 1, 0, 1), 1), groups=1, bias=None),
        lambda: conv((1, 8, 4, 4, 5, 3, 2, 1, 2), out_dtype=torch.bfloat16),
        lambda: conv((2, 8, 4, 6, 5, 3, 1, 1, 1)) | weight_operands_s4((5, 8, 3, 3)),
        lambda: conv((2, 8, 3, 3, 1, 3, 1, 0, 1)),
        lambda: conv(
            (2, 8, 4, 4, 1, 1, 1, 0, 1), return_quantized=True, out_qparams=random_qparams(2)
        ),
        lambda: conv(
            (2, 8, 4, 4, 5, 1, 1, 0, 1), out_dtype=torch.uint8, out_qparams=random_qparams(2)
        ),
    ],
}
ALL = [(name, index) for name, makers in CASES.items() for index in range(len(makers))]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def listed(result):
    return result if isinstance(result, tuple) else (result,)


def results(name, operands):
    return listed(getattr(ops, name)(**operands))


class Calls(TorchDispatchMode):
    """Records the tfq operators called and their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "tfq":
            self.calls.append((operator, args, kwargs or {}))
        return operator(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    """A subclass that changes nothing."""


def operator_call(name, operands):
    """The operator behind a call of the function, and its arguments: as a subclass reaches it."""
    first = next(iter(operands))
    with Calls() as recorder:
        getattr(ops, name)(**(operands | {first: operands[first].as_subclass(Subclass)}))
    (call,) = recorder.calls
    return call


def plain(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, Subclass) else value


@pytest.mark.parametrize("name, index", ALL)
def test_operator_is_what_torch_expects(name, index):
    operator, args, kwargs = operator_call(name, CASES[name][index]())
    torch.library.opcheck(operator, tuple(map(plain, args)), kwargs)


def test_every_overload_is_tested():
    called = set()
    for name, index in ALL:
        operator = operator_call(name, CASES[name][index]())[0]
        called.add(operator.name().removeprefix("tfq::"))
    assert called == set(library.SCHEMAS)


@pytest.mark.parametrize("name, index", ALL)
def test_fakes_look_like_results(name, index):
    operands = CASES[name][index]()
    real = results(name, operands)
    with FakeTensorMode() as mode:
        fake = results(
            name,
            {
                argument: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for argument, value in operands.items()
            },
        )
    for fake_tensor, tensor in zip(fake, real, strict=True):
        assert fake_tensor.dtype is tensor.dtype
        assert fake_tensor.shape == tensor.shape
        assert fake_tensor.stride() == tensor.stride()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_compiled_function_gives_the_same_bits(name, dynamic):
    for maker in CASES[name]:
        torch._dynamo.reset()
        operands = maker()
        compiled = torch.compile(
            lambda operands: getattr(ops, name)(**operands),
            backend="aot_eager", fullgraph=True, dynamic=dynamic,
        )  # fmt: skip
        for actual, expected in zip(
            listed(compiled(operands)), results(name, operands), strict=True
        ):
            assert_same_bits(actual, expected, name)
            assert actual.stride() == expected.stride()


def test_compiler_sees_strides_of_its_own_tensors():
    """A graph makes tensors between operators in the layout the kernels want, or they raise."""
    operands = conv_operands((2, 8, 4, 6, 8, 3, 1, 1, 1))
    weight, bias = torch.ones(8), torch.zeros(8)

    def block(**operands):
        x = ops.conv2d_s8(**operands) * 2
        q, qparams = ops.group_norm_silu_quantize(x, 4, weight, bias)
        return ops.conv2d_s8(**(operands | {"x": q, "qparams": qparams, "residual": x}))

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(**operands), block(**operands))


@pytest.mark.parametrize("name", CASES)
def test_subclasses_work(name):
    operands = CASES[name][0]()
    first = next(iter(operands))
    expected = results(name, operands)
    operands[first] = operands[first].as_subclass(Subclass)
    for actual, tensor in zip(results(name, operands), expected, strict=True):
        assert_same_bits(actual.as_subclass(torch.Tensor), tensor, name)


def test_eager_calls_stay_outside_the_dispatcher():
    operands = CASES["gemm_s8"][0]()
    with Calls() as recorder:
        ops.gemm_s8(**operands)
    assert not recorder.calls


def test_gradients_are_refused():
    x = torch.randn(4, 6, requires_grad=True)
    message = "quantize: x requires grad, but tfq is inference-only"
    with pytest.raises(ValueError, match=message):
        torch.ops.tfq.quantize(x, groups=4)
    with pytest.raises(Exception, match=message):
        torch.compile(ops.quantize, backend="aot_eager", fullgraph=True)(x)
    with torch.no_grad():
        torch.compile(ops.quantize, backend="aot_eager", fullgraph=True)(x)


def converted_unet(**config):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return tfq.convert(
        unet, tfq.TfqConfig(calibration_samples=2, **config),
        scheduler=diffusers.DDIMScheduler(), num_inference_steps=STEPS,
    )  # fmt: skip


def test_compiled_unet_equals_eager_in_one_graph():
    """Known timesteps and others, nothing read back to the host.

    One compilation each of the model and of its hooks: the output correction, and NaN of the inputs.
    """
    unet = converted_unet()
    assert unet.time_embedding.values.tolist() == list(KNOWN)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(unet, backend=counter, fullgraph=True)
    x = torch.randn(1, 3, 8, 8)
    outputs = []
    for timestep in (*KNOWN, UNKNOWN, 999.0):
        timestep = torch.tensor(timestep)
        outputs.append(compiled(x, timestep).sample)
        assert_same_bits(outputs[-1], unet(x, timestep).sample, f"timestep {timestep}")
    assert counter.frame_count == 3
    assert not torch.equal(outputs[0], outputs[1])


def test_compiled_transformer_equals_eager():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        cross_attention_dim=12, attention_head_dim=8, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    text = torch.randn(1, 3, 12)
    calls = [
        {"sample": torch.randn(1, 4, 8, 8), "timestep": t, "encoder_hidden_states": text}
        for t in (0, 200)
    ]
    tfq.convert(unet, calibration=calls)
    compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
    inputs = calls[0] | {"timestep": torch.tensor(200)}
    assert_same_bits(compiled(**inputs).sample, unet(**inputs).sample)


def test_rows_of_a_mixed_batch():
    unet = converted_unet()
    embedding = unet.time_embedding
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(embedding, backend=counter, fullgraph=True)
    for timesteps in ([0.0, UNKNOWN, 800.0], [200.0, 200.0, 0.0], [999.0, 1.5, UNKNOWN]):
        timesteps = torch.tensor(timesteps)
        key = temporal.encode_timesteps(timesteps)
        actual, expected = compiled(key), embedding(key)
        torch.testing.assert_close(actual, expected)  # a product of three rows for three of one
        known = torch.isin(timesteps, embedding.values)
        assert_same_bits(actual[known], expected[known])
        ranges = slice(temporal.VALUE_SLOT, embedding.ranges_end)
        assert_same_bits(actual[:, ranges], expected[:, ranges])
    assert counter.frame_count == 1


def test_dropped_block_wants_known_timesteps():
    embedding = converted_unet(drop_tib=True).time_embedding
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    known = temporal.encode_timesteps(torch.tensor([200.0, 0.0]))
    assert_same_bits(compiled(known), embedding(known))
    with pytest.raises(RuntimeError, match=r"timestep without a row.*drop_tib=True"):
        compiled(temporal.encode_timesteps(torch.tensor([200.0, UNKNOWN])))
