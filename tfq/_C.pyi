"""Native kernels. Addresses and sizes, positional only; called by tfq.ops alone."""

__version__: str
packed_layout_version: int

def compiler() -> str: ...
def cuda_archs() -> list[str]: ...
def cuda_available() -> bool: ...
def num_threads() -> int: ...
def isa() -> str: ...
def detected_isa() -> str: ...
def set_max_isa(name: str, /) -> None: ...
def kernels() -> list[tuple[str, str, str]]: ...
def pack_weight(weight: int, n: int, k: int, packed: int, weight_sum: int, /) -> None: ...
def unpack_weight(packed: int, n: int, k: int, weight: int, /) -> None: ...
def pack_weight_s4(
    q: int, zero_point: int, n: int, k: int, packed: int, weight_sum: int, /
) -> None: ...
def unpack_weight_s4(packed: int, n: int, k: int, q: int, /) -> None: ...
def dequantize_weight(
    weight: int, zero_point: int, n: int, k: int, scale: int, out: int, out_dtype: int, /
) -> None: ...
def gemm_s8(
    x: int, m: int, n: int, k: int, weight: int, weight_zero_point: int, epilogue: tuple, /
) -> None: ...
def conv2d_s8(
    x: int, geometry: tuple, weight: int, weight_zero_point: int, epilogue: tuple, /
) -> None: ...
def quantize(
    x: int,
    x_dtype: int,
    groups: int,
    group_size: int,
    qparams: tuple,
    dynamic_qparams: int,
    out: int,
    /,
) -> None: ...
def group_norm_silu_quantize(
    x: int,
    x2: int,
    x_dtype: int,
    shape: tuple,
    eps: float,
    silu: bool,
    weight: int,
    bias: int,
    affine_stride: int,
    qparams: tuple,
    dynamic_qparams: int,
    out: int,
    /,
) -> None: ...
def layer_norm_quantize(
    x: int,
    x_dtype: int,
    rows: int,
    channels: int,
    eps: float,
    weight: int,
    bias: int,
    qparams: tuple,
    rows_per_group: int,
    dynamic_qparams: int,
    out: int,
    /,
) -> None: ...
def geglu_quantize(
    x: int,
    x_dtype: int,
    rows: int,
    channels: int,
    qparams: tuple,
    rows_per_group: int,
    dynamic_qparams: int,
    out: int,
    /,
) -> None: ...
def attention_s8(
    query: int,
    key: int,
    value: int,
    dtype: int,
    shape: tuple,
    scale: float,
    out: int,
    out_dtype: int,
    /,
) -> None: ...
def resnet_block(
    x: int,
    x2: int,
    dtype: int,
    shape: tuple,
    norm1: tuple,
    conv1: tuple,
    temporal: tuple,
    norm2: tuple,
    conv2: tuple,
    shortcuts: tuple,
    out: int,
    /,
) -> None: ...
def temporal_gather(
    table: int, table_rows: int, width: int, rows: int, count: int, out: int, /
) -> None: ...
def temporal_gather_dequantize(
    table: int,
    table_rows: int,
    width: int,
    qparams: int,
    offsets: int,
    features: int,
    rows: int,
    count: int,
    out: int,
    /,
) -> None: ...

class CudaError(RuntimeError): ...

# CUDA: the functions above on device memory, with (device index, stream) last. Those of products take
# `options` before it: (workspace, workspace_size, tile, splits, tap_sums, enlarged), see struct
# ProductOptions in csrc/cuda/cuda.h.
def cuda_gemm_s8(
    x: int, m: int, n: int, k: int, weight: int, epilogue: tuple, options: tuple, launch: tuple, /
) -> None: ...
def cuda_conv2d_s8(
    x: int,
    x2: int,
    channels2: int,
    geometry: tuple,
    weight: int,
    epilogue: tuple,
    options: tuple,
    launch: tuple,
    /,
) -> None: ...
def cuda_enlarged_bytes(geometry: tuple, channels2: int, device: int, /) -> int: ...
def cuda_quantize(
    x: int,
    x_dtype: int,
    groups: int,
    group_size: int,
    qparams: tuple,
    dynamic_qparams: int,
    out: int,
    workspace: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_group_norm_silu_quantize(
    x: int,
    x2: int,
    x_dtype: int,
    shape: tuple,
    eps: float,
    silu: bool,
    weight: int,
    bias: int,
    affine_stride: int,
    qparams: tuple,
    dynamic_qparams: int,
    out: int,
    workspace: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_layer_norm_quantize(
    x: int,
    x_dtype: int,
    rows: int,
    channels: int,
    eps: float,
    weight: int,
    bias: int,
    qparams: tuple,
    rows_per_group: int,
    dynamic_qparams: int,
    out: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_geglu_quantize(
    x: int,
    x_dtype: int,
    rows: int,
    channels: int,
    qparams: tuple,
    rows_per_group: int,
    dynamic_qparams: int,
    out: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_dequantize_weight(
    weight: int,
    zero_point: int,
    n: int,
    k: int,
    scale: int,
    out: int,
    out_dtype: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_attention_s8(
    query: int,
    key: int,
    value: int,
    dtype: int,
    shape: tuple,
    scale: float,
    out: int,
    out_dtype: int,
    workspace: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_temporal_gather(
    table: int, table_rows: int, width: int, rows: int, count: int, out: int, launch: tuple, /
) -> None: ...
def cuda_temporal_gather_dequantize(
    table: int,
    table_rows: int,
    width: int,
    qparams: int,
    offsets: int,
    features: int,
    rows: int,
    count: int,
    out: int,
    launch: tuple,
    /,
) -> None: ...
def cuda_image_workspace(batch: int, pixels: int, channels: int, /) -> int: ...
def cuda_attention_workspace(shape: tuple, /) -> int: ...
def cuda_has_attention(head_size: int, /) -> bool: ...
def cuda_tiles() -> list[str]: ...

# Entries are (10 * compute capability, multiprocessors, operation, m, n, k, tile, parts of k,
# microseconds), see csrc/cuda/dispatch_table.h.
def cuda_set_dispatch_table(entries: list[tuple], /) -> None: ...
def cuda_set_overlapping_launches(enabled: bool, /) -> None: ...
def cuda_choose_product(
    operation: str,
    m: int,
    n: int,
    k: int,
    workspace: int,
    device: tuple,
    entries: list[tuple],
    /,
) -> tuple[str, int, str]: ...
def cuda_conv_problem(geometry: tuple, channels2: int, /) -> tuple[int, int, int]: ...

class Program:
    """CPU operations in their order; each has a method of its name and arguments, which appends a call."""

    def run(self) -> None: ...
    def __len__(self) -> int: ...
    def __getattr__(self, operation: str, /): ...
