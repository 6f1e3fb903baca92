"""Networks of other packages with random weights: ``cd scripts; mpiconv run --model zoo:timm__resnet18__64``.

The name is PACKAGE__NAME__SIZE, of timm, smp (segmentation_models_pytorch), monai, transformers or torchvision. Batch
normalisations have the statistics of the network's own maps, so that these keep their size from layer to layer.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulated import sensible

CLASSES = 10
SMALL: dict[str, dict[str, Any]] = {
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
    "Bit": {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "num_groups": 8},
    "ConvNext": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    "ConvNextV2": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    "FocalNet": {"embed_dim": 16, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128]},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "MobileViT": {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]},
    "PoolFormer": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "EfficientNet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "Van": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "Swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "Segformer": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
}
MONAI: dict[str, dict[str, Any]] = {
    "BasicUNet": {"features": (8, 8, 16, 32, 64, 8)},
    "BasicUNetPlusPlus": {"features": (8, 8, 16, 32, 64, 8)},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "UNet": {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
    "AttentionUnet": {"channels": (8, 16, 32), "strides": (2, 2)},
    "SegResNet": {"init_filters": 8},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32]},
    "HighResNet": {},
    "AutoEncoder": {"channels": (8, 16), "strides": (2, 2)},
    "DenseNet121": {},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False},
    "SEResNet50": {},
    "resnet10": {},
}


def _timm(name: str, size: int) -> nn.Module:
    import timm

    options = {"img_size": size} if name.startswith(("swinv2_cr", "maxvit")) else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    return model


def _smp(name: str, _: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    encoder = "mit_b0" if name == "Segformer" else "resnet18"
    model: nn.Module = getattr(smp, name)(encoder_name=encoder, encoder_weights=None, classes=CLASSES)
    return model


def _monai(name: str, _: int) -> nn.Module:
    from monai.networks import nets

    inputs = "n_input_channels" if name.startswith("resnet") else "in_channels"
    outputs = "num_classes" if name in ("EfficientNetBN", "SEResNet50", "resnet10") else "out_channels"
    options = {"spatial_dims": 2, inputs: 3, outputs: CLASSES, **MONAI[name]}
    model: nn.Module = getattr(nets, name)(**options)
    return model


def _transformers(name: str, size: int) -> nn.Module:
    import transformers

    task = "SemanticSegmentation" if name.endswith("Segmenter") else "ImageClassification"
    kind = name.removesuffix("Segmenter")
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, image_size=size, **SMALL[kind])
    model: nn.Module = getattr(transformers, f"{kind}For{task}")(config)
    return model


def _torchvision(name: str, _: int) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


MAKERS: dict[str, Callable[[str, int], nn.Module]] = {
    "timm": _timm,
    "smp": _smp,
    "monai": _monai,
    "transformers": _transformers,
    "torchvision": _torchvision,
}


def make(text: str) -> nn.Module:
    """The network that PACKAGE__NAME__SIZE names."""
    package, name, size = text.split("__")
    # torchvision's compiled operators, which no network here uses, may be for another torch
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    model = MAKERS[package](name, int(size)).eval()
    sensible(model, (3, int(size), int(size)))
    return model


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name.partition("__")[0] not in MAKERS:
        raise AttributeError(name)
    return lambda: make(name)
