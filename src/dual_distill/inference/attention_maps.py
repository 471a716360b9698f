"""Where the words of a text look in an image: the attention that distillation compares, one map a word."""

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor
from dual_distill.objectives import cross_modal_scores


@torch.inference_mode()
def word_attention(
    model: PreTrainedModel, processor: DualDistillProcessor, image: Image.Image, text: str, layer: int = -1
) -> tuple[list[str], np.ndarray]:
    """Text-to-image attention of one layer, averaged over heads and over the pieces of each word.

    The probabilities are those that distillation compares: softmax over the image's tokens alone. What a word gives to
    the image's CLS token is missing from its map, so a map sums to at most 1.

    Args:
        model: fusion or dual encoder, put into eval mode.
        processor: its processor.
        image: RGB.
        text: what is asked; special tokens are left out of the result.
        layer: counted as in `recorded_layers`.

    Returns:
        The W words and their maps `(W, rows, columns)`, float32, over the image's own patch grid.
    """
    model.eval()
    batch = processor(images=image, text=text).to(model.device)
    outputs = model(**batch, output_query_states=[layer], output_key_states=[layer])
    to_image, _ = cross_modal_scores(outputs.query_states[0], outputs.key_states[0], batch["input_ids"].shape[1])
    probs = to_image[0].float().softmax(-1).mean(0)[:, 1:].cpu().numpy()

    # A word is one or more pieces; special tokens are pieces of none.
    encoding = processor.tokenizer(text, truncation=True)
    pieces_of: dict[int, list[int]] = {}
    for position, word in enumerate(encoding.word_ids()):
        if word is not None:
            pieces_of.setdefault(word, []).append(position)

    patch_size = getattr(model.config, "vision_config", model.config).patch_size
    grid = [side // patch_size for side in batch["pixel_values"].shape[-2:]]
    spans = [encoding.word_to_chars(word) for word in pieces_of]
    maps = [probs[pieces].mean(0).reshape(grid) for pieces in pieces_of.values()]
    return [text[span.start : span.end] for span in spans], np.stack(maps)
