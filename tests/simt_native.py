"""The CUDA kernels on the CPU: builds tests/simt and calls it as tfq.ops calls tfq._C."""

import importlib.util

import cmake_programs
import torch

from tfq.geometry import conv_output_size, normalize_padding
from tfq.ops import _cuda
from tfq.ops._checks import DTYPE_CODES
from tfq.ops.products import ACTIVATION_CODES

SOURCE = cmake_programs.ROOT / "tests" / "simt"
NOWHERE = (0, 0)
GUARD = 512  # elements before and after an output: more than a row
SENTINEL = 0xA5

# What the shim pretends to be: see DeviceFacts of csrc/cuda/device.h.
DEVICE = (80, 108, 166912, 167936, False)
# A Hopper of two multiprocessors: a block takes several tiles, as it does on a real one.
HOPPER = (90, 2, 232448, 233472, True)

# Schedules x copy modes: (order, lazy copies). See simt_host.h.
FORWARD, REVERSE, SHUFFLED, GREEDY = range(4)
SCHEDULES = [(order, lazy) for order in range(4) for lazy in (False, True)]


def build(sanitize=False):
    """Folder of the programs, up to date."""
    name, on = ("simt-sanitize", "ON") if sanitize else ("simt", "OFF")
    return cmake_programs.build(SOURCE, name, TFQ_SIMT_SANITIZE=on)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _table(tensor):
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))


def guarded_empty(shape, dtype):
    """Memory between guard zones, and a function that raises unless they are intact."""
    shape = torch.Size(shape)
    zones = torch.full((shape.numel() + 2 * GUARD,), SENTINEL, dtype=torch.uint8)
    zones = zones.repeat_interleave(dtype.itemsize).view(dtype)

    def check():
        around = torch.cat([zones[:GUARD], zones[-GUARD:]]).view(torch.uint8)
        assert bool((around == SENTINEL).all()), "a kernel wrote outside its output"

    return zones[GUARD:-GUARD].view(shape), check


class Simt:
    """The module tfq_simt; the functions take the operands of tfq.ops, products some of their own."""

    def __init__(self, folder):
        (path,) = folder.glob("tfq_simt*.so")
        spec = importlib.util.spec_from_file_location("tfq_simt", path)
        self.native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.native)
        self.tiles = self.native.cuda_tiles()
        self.workspace = torch.zeros(_cuda.WORKSPACE_VALUES // 4, dtype=torch.int32)
        self.overlapping = False  # products begin before what made their operands has ended

    def schedule(self, order=FORWARD, lazy=False, seed=0, fault=0):
        self.native.set_options(order, lazy, seed, fault)

    def gemm_s8(self, x, *operands, **options):
        rows, k = x.shape

        def call(n, weight, epilogue, native_options):
            self.native.cuda_gemm_s8(
                x.data_ptr(),
                rows,
                n,
                k,
                weight.data_ptr(),
                epilogue,
                (*native_options, 0, 0),
                NOWHERE,
            )

        return self._product((rows,), call, (x,), *operands, **options)

    def conv2d_s8(
        self,
        x,
        *operands,
        kernel_size,
        stride=1,
        padding=0,
        upsample=1,
        x2=None,
        enlarge=True,
        **options,
    ):
        batch, channels, height, width = x.shape
        kernel, stride, pads = normalize_padding(kernel_size, stride, padding)
        out_h, out_w = conv_output_size((height * upsample, width * upsample), kernel, stride, pads)

        def call(n, weight, epilogue, native_options):
            geometry = (
                batch, height, width, channels, out_h, out_w, n, *kernel, *stride, pads[0], pads[2],
                upsample,
            )  # fmt: skip
            second = (0, 0) if x2 is None else (x2.data_ptr(), x2.shape[1])
            sums = _cuda.tap_sums(weight, n, kernel[0] * kernel[1], channels + second[1])
            size = self.native.cuda_enlarged_bytes(geometry, second[1], 0) if enlarge else 0
            enlarged, check = guarded_empty((size,), torch.uint8)
            self.native.cuda_conv2d_s8(
                x.data_ptr(),
                *second,
                geometry,
                weight.data_ptr(),
                epilogue,
                (*native_options, sums.data_ptr(), enlarged.data_ptr() if size else 0),
                NOWHERE,
            )
            check()

        out = self._product((batch, out_h, out_w), call, (x, x2), *operands, **options)
        return out.permute(0, 3, 1, 2)

    def _set_unfinished(self, tensors):
        """The memory of these is that of launches before, which still run when the next begins."""
        storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
        pieces = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.native.set_unfinished_memory(list(pieces.items()))

    def _product(
        self, shape, call, sources, qparams, weight, weight_scale, weight_sum, bias=None, *, temporal=None,
        temporal_rows=None, residual=None, activation=None, out_dtype=torch.float32,
        out_qparams=None, quantized_out=None, tile=None, splits=0,
    ):  # fmt: skip
        n = weight_scale.shape[0]
        rows = torch.Size(shape).numel()
        geglu = activation == "geglu"
        packed = _cuda.device_weight(weight, geglu_rows=n if geglu else 0)
        if geglu:
            weight_scale, weight_sum, bias = map(
                _cuda.cached_interleaved, (weight_scale, weight_sum, bias)
            )
        shape = torch.Size((*shape, n // 2 if geglu else n))
        out, check = guarded_empty(shape, out_dtype)
        samples = 1
        if temporal is not None:
            samples = len(temporal if temporal_rows is None else temporal_rows)
        epilogue = (
            _table(qparams), rows // qparams.shape[0], weight_scale.data_ptr(), weight_sum.data_ptr(),
            _address(bias), _address(temporal), 0 if temporal is None else temporal.stride(0),
            0 if temporal is None else len(temporal), _address(temporal_rows), rows // samples,
            _address(residual), 0 if residual is None else DTYPE_CODES[residual.dtype],
            ACTIVATION_CODES[activation], out.data_ptr(), DTYPE_CODES[out_dtype],
            _address(quantized_out), _table(out_qparams),
        )  # fmt: skip
        options = (
            self.workspace.data_ptr(), self.workspace.numel(),
            -1 if tile is None else self.tiles.index(tile), splits,
        )  # fmt: skip
        if self.overlapping:
            self._set_unfinished(
                (*sources, qparams, temporal, temporal_rows, residual, out_qparams, out, quantized_out,
                 self.workspace if splits > 1 else None)
            )  # fmt: skip
        try:
            call(n, packed, epilogue, options)
        finally:
            self._set_unfinished(())
        check()
        return out

    def _quantized(self, shape, groups, qparams):
        """(uint8 output, its check, qparams to return, native qparams, address of dynamic ones)."""
        q, check = guarded_empty(shape, torch.uint8)
        if qparams is not None:
            return q, check, qparams, _table(qparams), 0
        dynamic = torch.empty((groups, 3))
        return q, check, dynamic, (0, 0), dynamic.data_ptr()

    def quantize(self, x, qparams=None, groups=None):
        """:func:`tfq.ops.quantize` of 2-D `x`."""
        groups = groups or (len(x) if qparams is None else len(qparams))
        q, check, result, native, dynamic = self._quantized(x.shape, groups, qparams)
        workspace = torch.empty(self.native.cuda_image_workspace(groups, 1, x.numel() // groups))
        self.native.cuda_quantize(
            x.data_ptr(), DTYPE_CODES[x.dtype], groups, x.numel() // groups, native, dynamic,
            q.data_ptr(), workspace.data_ptr(), NOWHERE,
        )  # fmt: skip
        check()
        return q, result

    def group_norm_silu_quantize(
        self, x, num_groups, weight, bias, eps=1e-5, *, x2=None, silu=True, qparams=None
    ):
        batch, channels, height, width = x.shape
        channels2 = 0 if x2 is None else x2.shape[1]
        total = channels + channels2
        shape = (batch, height, width, total)
        q, check, result, native, dynamic = self._quantized(shape, batch, qparams)
        if qparams is None or len(qparams) == 1:
            native = (native[0], 0)
        native = (*native, 1 if qparams is None else len(qparams))
        size = self.native.cuda_image_workspace(batch, height * width, total)
        workspace, check_workspace = guarded_empty((size,), torch.float32)
        self.native.cuda_group_norm_silu_quantize(
            x.data_ptr(), _address(x2), DTYPE_CODES[x.dtype],
            (batch, height * width, channels, channels2, num_groups), eps, silu, weight.data_ptr(),
            bias.data_ptr(), weight.stride(0) if weight.dim() == 2 else 0, native, dynamic,
            q.data_ptr(), workspace.data_ptr(), NOWHERE,
        )  # fmt: skip
        check()
        check_workspace()
        return q.permute(0, 3, 1, 2), result

    def layer_norm_quantize(self, x, weight, bias, eps=1e-5, *, qparams=None):
        rows, channels = x.shape
        q, check, result, native, dynamic = self._quantized(x.shape, rows, qparams)
        self.native.cuda_layer_norm_quantize(
            x.data_ptr(), DTYPE_CODES[x.dtype], rows, channels, eps, _address(weight),
            _address(bias), native, rows // len(result), dynamic, q.data_ptr(), NOWHERE,
        )  # fmt: skip
        check()
        return q, result

    def geglu_quantize(self, x, *, qparams=None):
        rows, channels = len(x), x.shape[1] // 2
        q, check, result, native, dynamic = self._quantized((rows, channels), rows, qparams)
        self.native.cuda_geglu_quantize(
            x.data_ptr(), DTYPE_CODES[x.dtype], rows, channels, native, rows // len(result), dynamic,
            q.data_ptr(), NOWHERE,
        )  # fmt: skip
        check()
        return q, result

    def attention_s8(self, query, key, value, heads, *, scale=None, out_dtype=None):
        batch, tokens, width = query.shape
        shape = (batch, tokens, key.shape[1], heads, width // heads)
        out_dtype = out_dtype or query.dtype
        out, check = guarded_empty(query.shape, out_dtype)
        size = self.native.cuda_attention_workspace(shape)
        workspace, check_workspace = guarded_empty((size,), torch.uint8)
        self.native.cuda_attention_s8(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), DTYPE_CODES[query.dtype], shape,
            scale or (width // heads) ** -0.5, out.data_ptr(), DTYPE_CODES[out_dtype],
            workspace.data_ptr(), NOWHERE,
        )  # fmt: skip
        check()
        check_workspace()
        return out

    def dequantize_weight(self, packed, scale, shape, *, zero_point=None, dtype=torch.float32):
        """:func:`tfq.ops.dequantize_weight` of a 2-D shape."""
        out, check = guarded_empty(shape, dtype)
        self.native.cuda_dequantize_weight(
            packed.data_ptr(), _address(zero_point), *shape, scale.data_ptr(), out.data_ptr(),
            DTYPE_CODES[dtype], NOWHERE,
        )  # fmt: skip
        check()
        return out

    def temporal_gather(self, table, rows, qparams=None, offsets=None):
        """:func:`tfq.ops.temporal_gather`."""
        out, check = guarded_empty((len(rows), table.shape[1]), torch.float32)
        end = (rows.data_ptr(), len(rows), out.data_ptr(), NOWHERE)
        if qparams is None:
            self.native.cuda_temporal_gather(table.data_ptr(), *table.shape, *end)
        else:
            self.native.cuda_temporal_gather_dequantize(
                table.data_ptr(), *table.shape, qparams.data_ptr(), offsets.data_ptr(),
                qparams.shape[1], *end,
            )  # fmt: skip
        check()
        return out
