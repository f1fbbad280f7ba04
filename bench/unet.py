"""Whole models: tfq against what a user can pick today, in one run, interleaved.

    python bench/unet.py                              # DDPM CIFAR-10, batch 4
    python bench/unet.py --model sd15 --batch 1
    python bench/unet.py --model sdxl --batch 1 --arms openvino-int8,tfq-bf16-graph    # 512 px, 35 GB
    python bench/unet.py --model dit-xl2 --batch 2    # a class and none, as guidance calls it
    python bench/unet.py --isa avx2                   # every engine held to AVX2
    python bench/unet.py --arms tfq-bf16-graph,tfq-w4,fp32,bf16,openvino-int8

Weights are random unless the model is a trained one (its name in the table says so): speed does not
depend on them, and the PSNR beside each time is of one call to float, not of sampled images.
"""

import argparse
import copy
import os
import sys

AVX2_ENVIRONMENT = {
    "TFQ_MAX_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OV_CPU_MAX_ISA": "AVX2",
}
VNNI_ENVIRONMENT = {"TFQ_MAX_ISA": "avx512vnni", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
ISA_ENVIRONMENT = {"best": {}, "avx512vnni": VNNI_ENVIRONMENT, "avx2": AVX2_ENVIRONMENT}
RANDOM = ("ddpm-cifar10", "sd15", "sdxl", "dit-s2", "dit-xl2", "pixart-s2", "pixart-xl2")
TRAINED = ("fashion32", "animeface64")
TIMESTEP = 500
SDXL_LATENT = 64
TFQ_ARMS = [
    f"tfq{bits}{dtype}{graph}"
    for bits in ("", "-w4")
    for dtype in ("", "-bf16")
    for graph in ("", "-graph")
]


def parse_arguments():
    """Command line; separate from main because the environment must be set before torch is imported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=(*RANDOM, *TRAINED), default="ddpm-cifar10")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--isa", choices=ISA_ENVIRONMENT, default="best", help="cap of every engine"
    )
    parser.add_argument(
        "--arms", default="fp32,bf16,tfq-bf16,tfq-bf16-graph", help="comma-separated"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="time to spend on measuring")
    return parser.parse_args()


def build_arms(names, load, inputs):
    """Name -> (call without arguments returning the output, facts for the row)."""
    import torch
    from torch.utils import _pytree as pytree

    import tfq

    def moved_inputs(dtype):
        return pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs
        )

    def runner(model, dtype):
        moved = moved_inputs(dtype)
        if "sample" in moved:
            moved["sample"] = moved["sample"].contiguous(memory_format=torch.channels_last)

        @torch.no_grad()
        def call():
            return model(**moved).sample

        return call

    def float_model(dtype):
        return load().to(dtype).to(memory_format=torch.channels_last)

    def converted(dtype, weights, graph):
        # Nearest rounding: a reconstruction changes the integers, not the time.
        model = load().to(dtype)
        config = tfq.TfqConfig(weights=weights, precision="uniform")
        tfq.convert(model, config, calibration=[moved_inputs(dtype)])
        if graph:
            tfq.graph(model)
        share = tfq.report(model).to_dict()["native_mac_share"]
        return runner(model, dtype), {"native_mac_share": share}

    arms = {}
    for name in names:
        if name in ("fp32", "bf16"):
            dtype = torch.float32 if name == "fp32" else torch.bfloat16
            arms[f"torch {name}"] = (runner(float_model(dtype), dtype), {})
        elif name == "compile-bf16":
            model = torch.compile(float_model(torch.bfloat16))
            arms["torch.compile bf16"] = (runner(model, torch.bfloat16), {})
        elif name in TFQ_ARMS:
            dtype = torch.bfloat16 if "-bf16" in name else torch.float32
            bits = 4 if "-w4" in name else 8
            graph = name.endswith("-graph")
            label = f"tfq W{bits}A8 ({str(dtype).removeprefix('torch.')}{', graph' * graph})"
            arms[label] = converted(dtype, f"int{bits}", graph)
        elif name in ("openvino-float", "openvino-int8"):
            import openvino_arm

            call, hint = openvino_arm.compile_unet(load, inputs, name.endswith("int8"))
            label = f"OpenVINO {name.removeprefix('openvino-')} ({hint} hint)"
            arms[label] = call, {"precision_hint": hint}
        else:
            sys.exit(f"unknown arm {name!r}")
    return arms


def main():
    """Build, check, time, print, write."""
    args = parse_arguments()
    os.environ.update(ISA_ENVIRONMENT[args.isa])
    import machine
    import models
    import torch
    from harness import print_table

    from tfq.comparison import psnr
    from tfq.shapes import example_inputs
    from tfq.timing import interleave, paired_ratio

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    facts = machine.facts()
    trained = args.model in TRAINED
    loaded = getattr(models, args.model)() if trained else models.random_weights(args.model)
    if loaded is None:
        sys.exit(f"{args.model}: not found in {models.SHARED_MODELS}")
    unet, _ = loaded
    inputs = example_inputs(unet, args.batch, torch.Generator().manual_seed(0))
    timestep = TIMESTEP if args.model != "animeface64" else 150
    # A transformer takes a timestep for each image.
    inputs["timestep"] = timestep if "sample" in inputs else torch.full((args.batch,), timestep)
    if args.model == "sdxl":
        inputs["sample"] = inputs["sample"][..., :SDXL_LATENT, :SDXL_LATENT].contiguous()
    if "encoder_hidden_states" in inputs:
        inputs["encoder_hidden_states"].normal_(generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        reference = unet(**inputs).sample
    if args.model == "sdxl":  # does not fit more than once, nor in float32 beside an engine
        del unet, loaded

        def load():
            return models.random_weights("sdxl")[0].to(torch.bfloat16)
    else:

        def load():
            return copy.deepcopy(unet)

    arms = build_arms(args.arms.split(","), load, inputs)
    outputs = {name: call().float() for name, (call, _) in arms.items()}
    timings = interleave({name: call for name, (call, _) in arms.items()}, seconds=args.seconds)

    fastest = min(
        (n for n in arms if n.startswith("tfq")), key=lambda n: timings[n].median, default=None
    )
    rows, results = [], {}
    for name, (_, extra) in arms.items():
        quality = psnr(outputs[name], reference, peak=2 * reference.abs().max().item())
        ratio = paired_ratio(timings[name], timings[fastest]) if fastest else None
        share = extra.get("native_mac_share")
        rows.append(
            (
                name, f"{timings[name].median * 1e3:.1f}", f"{timings[name].best * 1e3:.1f}",
                str(ratio or ""), f"{quality:.1f}", "" if share is None else f"{100 * share:.2f} %",
            )
        )  # fmt: skip
        results[name] = timings[name].to_dict() | {"psnr_db": quality} | extra
        results[name]["ratio_to_tfq"] = ratio.median if ratio else None
    weights = "trained" if trained else "random weights"
    print(
        f"{args.model} ({weights}), batch {args.batch}, {torch.get_num_threads()} threads, isa cap "
        f"{args.isa}; {facts['cpu']}, tfq at {facts['isa']}, load {facts['load']}"
    )
    print_table(("arm", "median ms", "best ms", "time / tfq", "PSNR dB", "native MACs"), rows)
    name = f"unet-{args.model}-b{args.batch}-t{torch.get_num_threads()}"
    path = machine.write_results(
        name, facts, {"arguments": vars(args), "weights": weights, "arms": results}
    )
    print(f"written: {path.relative_to(models.ROOT)}")


if __name__ == "__main__":
    main()
