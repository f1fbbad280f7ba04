"""What the rows of gpu.py and gpu_unet.py must reach on a card, and the verdict on each.

On a Hopper, figures for an H200: 80 % of what products were projected to reach there (a call of 2.5 us
and 70 % of 1979 TOPS, convolutions 66 %), and multiples of what torch offers on the same card. On other
cards a GEMM is held to torch's own kernel alone. A row that lacks an alternative (a torch without it, a
run cut short) is not held to it.
"""

import typing

HOPPER = 90

# Projected TOPS of a GEMM: (n, k) of SDXL's and SD1.5's linear layers -> by m.
ROWS = (512, 1024, 2048, 4096, 8192, 32768)
GEMM_TOPS = {
    (320, 320): (31, 63, 126, 242, 410, 651),
    (960, 320): (94, 189, 342, 559, 728, 941),
    (2560, 320): (242, 428, 652, 831, 963, 1093),
    (320, 1280): (75, 144, 288, 529, 821, 1194),
    (640, 640): (101, 201, 379, 629, 895, 1194),
    (1920, 640): (302, 519, 775, 959, 1151, 1290),
    (5120, 640): (629, 895, 1074, 1194, 1264, 1356),
    (640, 2560): (249, 378, 659, 969, 1194, 1303),
    (1280, 1280): (288, 529, 821, 1074, 1194, 1303),
    (3840, 1280): (699, 959, 1089, 1240, 1290, 1329),
    (10240, 1280): (1074, 1194, 1264, 1303, 1323, 1372),
    (1280, 5120): (569, 751, 1065, 1264, 1303, 1333),
}
SHARE_OF_PROJECTED = 0.8
# torch._int_mm's and FP8's time over a GEMM's: at these m, and at larger ones by k: from 1280 on, or below.
OF_INT_MM = {512: 1.0, 1024: 1.1, 2048: 1.25}
OF_INT_MM_BEYOND = (1.35, 1.15)
OF_FP8 = {512: 0.85, 1024: 0.9, 2048: 0.9}
OF_FP8_BEYOND = 0.92
# Of a card of another architecture, from 2048 rows on.
OF_INT_MM_ELSEWHERE, ROWS_ELSEWHERE = 0.8, 2048
# TOPS of a 3 x 3 convolution with stride 1 and padding 1: batch, channels, size, out channels.
CONV_TOPS = {
    (2, 320, 128, 320): 960,
    (2, 960, 128, 320): 1000,
    (2, 640, 64, 640): 960,
    (2, 1280, 64, 1280): 1000,
    (2, 1280, 32, 1280): 850,
    (2, 2560, 32, 1280): 900,
    (2, 320, 64, 320): 750,
    (2, 640, 32, 640): 600,
    (2, 1280, 16, 1280): 600,
    (2, 1280, 8, 1280): 320,
    (8, 320, 64, 320): 960,
    (64, 128, 32, 128): 750,
    (64, 256, 16, 256): 850,
}
OF_CUDNN = 1.6
# Below it the copies of a convolution (im2col) hold the products back: tiled ones, for widths that are
# powers of two, would be worth their code.
OF_GEMM = 0.85
OF_COPY = 0.75
# A product of 160 columns is as fast as one of 256, column for column; else tiles of 128 and 192.
OF_WIDEST_PRODUCT = 0.95
# Below it torch's own choice of a backend is not the fastest, and tfq would have to make its own.
OF_FASTEST_ATTENTION = 0.95
# Of whole UNets: torch.compile's time over tfq's; bytes of the weights over bfloat16's.
UNETS = {"sdxl:2": 1.4, "sdxl:1": 1.3, "sd15:8": 1.35, "sd15:2": 1.25, "ddpm-cifar10:64": 1.3}
BYTES_OF_BF16 = 0.55


class Bound(typing.NamedTuple):
    """A figure of a row and the least, or the most, that it may be."""

    what: str
    reached: float
    bound: float
    most: bool = False

    def to_dict(self):
        """As the row's JSON has it."""
        met = self.reached <= self.bound if self.most else self.reached >= self.bound
        side = "at_most" if self.most else "at_least"
        return {"what": self.what, "reached": self.reached, side: self.bound, "met": met}


def gemm(row, _rows, on_hopper):
    """Bounds of a GEMM of ``row["shape"]``, (m, n, k)."""
    m, n, k = row["shape"]
    if not on_hopper:
        if m >= ROWS_ELSEWHERE:
            yield from _times(row, "_int_mm", OF_INT_MM_ELSEWHERE)
        return
    if (n, k) in GEMM_TOPS and m in ROWS:
        yield _rate(row, SHARE_OF_PROJECTED * GEMM_TOPS[n, k][ROWS.index(m)])
    yield from _times(row, "_int_mm", OF_INT_MM.get(m, OF_INT_MM_BEYOND[k < 1280]))
    yield from _times(row, "_scaled_mm fp8", OF_FP8.get(m, OF_FP8_BEYOND))


def conv(row, _rows, on_hopper):
    """Bounds of a convolution of ``row["shape"]``, a key of CONV_TOPS."""
    if on_hopper:
        shape = tuple(row["shape"])
        if shape in CONV_TOPS:
            yield _rate(row, CONV_TOPS[shape])
        yield from _times(row, "cuDNN bf16", OF_CUDNN)


def im2col(row, _rows, on_hopper):
    """Bounds of a convolution beside a GEMM of the same size."""
    if on_hopper:
        yield from _times(row, "gemm_s8", OF_GEMM)


def bandwidth(row, rows, _on_hopper):
    """Bounds of a kernel that memory limits, beside the copy of the same results."""
    if "ceiling copy" in rows:
        copy = rows["ceiling copy"]["gb_per_s"]["torch"]
        yield Bound("of a copy's bandwidth", row["gb_per_s"]["tfq"] / copy, OF_COPY)


def attention(row, _rows, _on_hopper):
    """Bounds of torch's attention: that it chooses the fastest of its backends."""
    backends = [us for name, us in row["us"].items() if name not in ("tfq", "torch bf16")]
    if backends:
        share = min(backends) / row["us"]["torch bf16"]
        yield Bound("fastest backend over torch's choice", share, OF_FASTEST_ATTENTION)


def ceiling(row, _rows, _on_hopper):
    """Bounds of a product of 160 columns in the row of wgmma."""
    tops = row.get("tops", {})
    narrow, widest = (tops.get(f"n={n} x2 SS random") for n in (160, 256))
    if narrow and widest:
        yield Bound("n=160 over n=256", narrow / widest, OF_WIDEST_PRODUCT)


def unet(row, _rows, on_hopper):
    """Bounds of a whole UNet, of which ``row["model"]`` is a key of UNETS."""
    if on_hopper and row["model"] in UNETS:
        yield Bound("times torch.compile", row["compile_over_tfq"], UNETS[row["model"]])
    share = (row["bytes"]["tfq"] + row["device_layouts_bytes"]) / row["bytes"]["bf16"]
    yield Bound("bytes of bf16's", share, BYTES_OF_BF16, most=True)


KINDS = {
    "gemm": gemm, "conv": conv, "im2col": im2col, "bandwidth": bandwidth, "attention": attention,
    "ceiling": ceiling, "unet": unet,
}  # fmt: skip


def _rate(row, least):
    return Bound("TOPS", row["tops"]["tfq"], least)


def _times(row, other, least):
    first = next(iter(row["us"]))
    if other in row["us"]:
        yield Bound(f"times {other}", row["us"][other] / row["us"][first], least)


def judge(results):
    """Write ``row["must"]``, a list of bounds, into every row of `results` (:class:`card.Results`)."""
    on_hopper = results.document["machine"]["arch"] == HOPPER
    for row in results.rows.values():
        bounds = KINDS[row["kind"]](row, results.rows, on_hopper)
        row["must"] = [bound.to_dict() for bound in bounds]


def verdict(row):
    """``"pass"``, what was missed of how much, or nothing if the row is held to nothing."""
    missed = [
        f"{one['what']} {one['reached']:.3g} of {one.get('at_least', one.get('at_most')):.3g}"
        for one in row["must"]
        if not one["met"]
    ]
    return f"FAIL: {'; '.join(missed)}" if missed else "pass" if row["must"] else ""


def summary(results):
    """How many rows reach what they must, a line."""
    held = [row for row in results.rows.values() if row["must"]]
    passed = sum(verdict(row) == "pass" for row in held)
    return f"{passed} of {len(held)} rows reach what they must"
