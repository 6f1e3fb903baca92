"""Split networks of timm, segmentation_models_pytorch, MONAI and transformers over 2 ranks, and check them.

    pip install -e ".[zoo]" && python scripts/check_zoo.py [PACKAGE.NAME@SIZE ...]

Every network is run by ``mpirun -n 2 mpiconv run --check`` by kernels and by rows, with random weights; a table comes
out, and what fails on stderr. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py

HERE = Path(__file__).resolve().parent
SCHEMES = ("kpm", "wpm")
WITHIN_S = 300

TIMM = """
test_byobnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet convmixer_768_32 cpubone_nano
cs3darknet_focus_s cspnext_tiny densenet121 dla34 dpn68 edgenext_x_small efficientvim_m1 efficientvit_b0 fasternet_t0
fastvit_s12 focalnet_tiny_srf ghostnet_050 hardcorenas_b hgnetv2_b0 hrnet_w18_small inception_next_atto lcnetv2_small
lowformer_b0 caformer_s18 poolformer_s12 mobilenetv3_small_050 mobileone_s0 mobilevit_xxs mobilevitv2_050 mnasnet_050
nextvit_small pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetv_040 repghostnet_050 repvit_m1 repvgg_a0 res2next50
resnest14d resnet18 resnet26d resnext26ts resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 seresnext26d_32x4d
shvit_s1 skresnet18 starnet_s1 tinynet_e tresnet_m ese_vovnet19b_slim_dw vgg11_bn xception41 eca_nfnet_l0 dm_nfnet_f0
hardcorenas_a semnasnet_050 spnasnet_100 tf_mobilenetv3_small_minimal_100 fbnetc_100 gernet_s darknet17 darknet53
cspresnet50 wide_resnet50_2 botnet26t_256@256 halonet26t@256 inception_v3@128 inception_v4@128 swiftformer_xs@224
efficientformerv2_s0@224 levit_128s@224 visformer_tiny@224 coat_lite_tiny@224 tiny_vit_5m_224@224 test_vit@160
test_coatnet@160
"""
SMP = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN@128 UPerNet Segformer"
MONAI = """
BasicUNet BasicUNetPlusPlus FlexibleUNet UNet AttentionUnet SegResNet DynUNet HighResNet AutoEncoder DenseNet121
EfficientNetBN SEResNet50 resnet10
"""
TRANSFORMERS = """
ResNet RegNet Bit ConvNext ConvNextV2 FocalNet MobileNetV1 MobileNetV2 MobileViT PoolFormer EfficientNet Swin
Segformer SegformerSegmenter
"""


def names() -> list[str]:
    """All networks as PACKAGE.NAME@SIZE."""
    listed = {"timm": TIMM, "smp": SMP, "monai": MONAI, "transformers": TRANSFORMERS}
    sized = [f"{package}.{name}" for package, text in listed.items() for name in text.split()]
    return [name if "@" in name else f"{name}@64" for name in sized]


def run(name: str, scheme: str, folder: str) -> dict[str, Any]:
    """What a run printed as JSON and its plan; ``error`` where it failed."""
    size = name.partition("@")[2]
    output = os.path.join(folder, "run.h5")
    command = [
        "mpirun",
        "--bind-to",
        "none",
        "-n",
        "2",
        "mpiconv",
        "run",
        "--model",
        "zoo:" + name.replace(".", "__").replace("@", "__"),
        "--input-size",
    ]
    command += [f"{size}x{size}", "--scheme", scheme, "--repeats", "1", "--warmup", "0", "--check", "--json", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--output", output], cwd=HERE, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {WITHIN_S} s"}
    errors = [line for line in done.stderr.splitlines() if "mpiconv: error:" in line]
    if done.returncode or not done.stdout.strip():
        return {"error": (errors or done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    with h5py.File(output) as file:
        return {**json.loads(done.stdout), "plan": json.loads(file.attrs["plan"])}


def row(name: str, folder: str) -> tuple[str, str]:
    """A line of the table, and why it failed if it did."""
    begin = time.monotonic()
    found = {scheme: run(name, scheme, folder) for scheme in SCHEMES}
    print(f"{name} {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    network, _, size = name.partition("@")
    failed = next((f"{scheme}: {result['error']}" for scheme, result in found.items() if "error" in result), "")
    if failed:
        return f"| {network} | {size} | | | | | FAILED |", failed
    units = found["kpm"]["plan"]["graph"]["units"]
    body = units[:-1]
    alone = [unit for unit in body if unit["layers"][-1]["kind"] == "whole"]
    errors = [
        f"{max(result['check']['max_rel_error'], result['check']['eager_rel_error']):.1e}" for result in found.values()
    ]
    return f"| {network} | {size} | {len(body)} | {len(alone)} | {errors[0]} | {errors[1]} | passed |", ""


def main() -> int:
    """The table; exit status 1 if a network fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="PACKAGE.NAME@SIZE; all that are known if none is given")
    wanted = parser.parse_args().names or names()
    print(
        "| network | input | units | of them root alone | largest error, kpm | wpm | |\n|---|---|---|---|---|---|---|"
    )
    failures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            line, failed = row(name, folder)
            print(line, flush=True)
            if failed:
                failures[name] = failed
    for name, failed in failures.items():
        print(f"{name}: {failed}", file=sys.stderr)
    print(f"\n{len(wanted) - len(failures)} of {len(wanted)} passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
