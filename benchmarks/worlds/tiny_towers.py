"""Tiny image and text models under the names of well-known ones, for students of two towers."""

from pathlib import Path

from transformers import (
    AutoModel,
    BertTokenizer,
    BitImageProcessorPil,
    Dinov2Config,
    ModernBertConfig,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
)


def write_towers(root: Path) -> None:
    """Tiny random models under the names of well-known ones, with image processor or tokenizer."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    flexible = Siglip2VisionConfig(**shape, num_patches=9, patch_size=12)
    fixed = Dinov2Config(**shape, image_size=36, patch_size=12)
    for name, config, images in (
        ("google/siglip2-base-patch16-naflex", flexible, Siglip2ImageProcessorPil(patch_size=12, max_num_patches=9)),
        ("facebook/dinov2-base", fixed, BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=36)),
    ):
        AutoModel.from_config(config).save_pretrained(root / name)
        images.save_pretrained(root / name)

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["what", "color", "is", "it", "red", "?"]]
    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    text = ModernBertConfig(**shape, **special, vocab_size=len(words), max_position_embeddings=64)
    AutoModel.from_config(text).save_pretrained(root / "answerdotai/ModernBERT-base")
    BertTokenizer({word: at for at, word in enumerate(words)}).save_pretrained(root / "answerdotai/ModernBERT-base")
