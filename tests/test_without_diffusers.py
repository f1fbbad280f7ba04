"""The kernels where only torch is installed, as on a machine that is there to run them."""

import subprocess
import sys

ABSENT = ("diffusers", "accelerate", "safetensors", "transformers", "peft", "huggingface_hub")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # from here on they cannot be imported
import torch, tfq

x = torch.randn(2, 16)
assert torch.equal(tfq.ops.quantize(x)[0], tfq.reference.quantize(x)[0])
assert tfq.info()["isa"]
for name in ("compare", "convert", "report", "save", "temporal_blocks", "Comparison", "Report"):
    try:
        getattr(tfq, name)(None)
    except ImportError as error:
        print(error)
"""


def test_kernels_run_and_models_say_what_to_install():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"tfq.{name} needs diffusers, which is not installed: pip install 'diffusers>=0.42' accelerate"
        for name in (
            "compare",
            "convert",
            "report",
            "save",
            "temporal_blocks",
            "Comparison",
            "Report",
        )
    ]
