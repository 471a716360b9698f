"""A text and an image as one prompt of a model's own chat template, and where in it their tokens stand."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaOnevisionModel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from dual_distill.modeling import seen_region

from .layout import WHOLE, check_offsets, grid_boxes, image_layout

# Stand for text and answer while the template is read; no text holds them, so what is around them is found.
_TEXT, _ANSWER = "\ue000", "\ue001"


class Prompt(NamedTuple):
    """What a template writes around a text behind its image, and around an answer behind all of that."""

    before: str
    after: str
    before_answer: str = ""
    after_answer: str = ""


def read_template(processor: Any, instruction: str = "{text}", system: str | None = None) -> Prompt:
    """Read the template of a processor; one without any has the image and the text, and nothing around them.

    Args:
        processor: of a model.
        instruction: what the user writes, around `{text}`, and around `{image}`, which stands first unless it is there.
        system: what the system says before; None: nothing.

    Raises:
        ValueError: the template leaves the image out, or puts it behind the text.
    """
    first, has_place, rest = instruction.partition("{image}")
    first, rest = (first, rest) if has_place else ("", first)
    if getattr(processor, "chat_template", None) is None:
        before, _, after = rest.partition("{text}")
        return Prompt(f"{system or ''}{first}{processor.image_token}{before}", after)

    def says(role: str, *content: str | None) -> dict[str, Any]:
        parts = [{"type": "text", "text": text} if text else {"type": "image"} for text in content if text != ""]
        return {"role": role, "content": parts}

    asked = [says("system", system)] if system else []
    asked.append(says("user", first, None, rest.replace("{text}", _TEXT)))
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    before, _, after = prompt.partition(_TEXT)
    if processor.image_token not in before:
        raise ValueError(f"the chat template has no {processor.image_token} before the text; give one that has.")
    turn, _, end = processor.apply_chat_template([*asked, says("assistant", _ANSWER)]).partition(_ANSWER)

    # SmolVLM is asked up to "Assistant:", and its turns are "Assistant: red": the blank is part of the answer's tokens.
    # More than a blank, such as the empty thought of a model that thinks, is part of the prompt. LLaVA-OneVision's
    # turns do not begin with its prompt at all; there an answer follows the prompt as it is.
    between = turn.removeprefix(prompt) if turn.startswith(prompt) else ""
    said = between.rstrip(" ")
    return Prompt(before, after + said, between.removeprefix(said), end.rstrip())


def prompt_inputs(
    config: Any, processor: Any, images: Sequence[Image.Image], texts: Sequence[str], prompt: Prompt, added: int = 0
) -> dict[str, Tensor]:
    """Process prompts of an image and a text each; padded on the left, so that what is written begins in one place.

    Florence-2's encoder counts its positions from the first token, padding or not, and is padded on the right.

    Args:
        config: of the model; its type says how image tokens cover the image.
        processor: its processor.
        images: B images.
        texts: B texts.
        prompt: what stands around a text.
        added: characters that the processor itself writes behind the prompt.

    Returns:
        What the model reads, and the layout; text tokens are those that cover a character of the text.
    """
    check_offsets(processor.tokenizer)
    prompts = [f"{prompt.before}{text}{prompt.after}" for text in texts]
    options: dict[str, Any] = {"padding": True, "return_attention_mask": True, "return_offsets_mapping": True}
    options |= {"padding_side": "right" if config.model_type == "florence2" else "left", "return_tensors": "pt"}
    # A template that writes the start of a text itself (Gemma 3, Idefics 3) is given no second one by the tokenizer.
    if (start := processor.tokenizer.bos_token) and prompt.before.startswith(start):
        options["add_special_tokens"] = False
    batch = dict(processor(text=prompts, images=[[image] for image in images], **options))
    offsets, real = batch.pop("offset_mapping"), batch["attention_mask"].bool()

    # Image tokens are written before the text, so characters are counted from the end.
    ends = (offsets[..., 1] * real).amax(1) - len(prompt.after) - added
    starts = ends - torch.tensor([len(text) for text in texts])
    inside = (offsets[..., 0] < ends[:, None]) & (offsets[..., 1] > starts[:, None]) & real
    inside &= offsets[..., 1] > offsets[..., 0]
    relative = (offsets - starts[:, None, None]).clamp(min=0).minimum((ends - starts)[:, None, None])
    if not inside.any(1).all():
        raise ValueError("a text has no token of its own; give texts that are not empty.")

    # Of each row the tokens of text and image.
    image_token = getattr(config, "image_token_id", None)
    is_image = batch["input_ids"] == (processor.image_token_id if image_token is None else image_token)
    index = [row.nonzero().flatten() for row in inside]
    spans = [row[chosen] for row, chosen in zip(relative, index, strict=True)]
    layout = {"text_spans": spans, "text_mask": [torch.ones_like(row).bool() for row in index], "text_index": index}
    boxes_of: Callable[[Shown], Tensor] = BOXES.get(config.model_type, square_boxes)
    boxes = []
    for row, image in enumerate(images):
        inputs = {name: tensor[row] for name, tensor in batch.items() if len(tensor) == len(images)}
        boxes.append(boxes_of(Shown(config, processor, inputs, image.size, int(is_image[row].sum()))))
    padded = {name: pad_sequence(rows, batch_first=True) for name, rows in layout.items()}
    return batch | padded | image_layout(boxes, [row.nonzero().flatten() for row in is_image])


class Shown(NamedTuple):
    """One row of a batch: which image its `tokens` image tokens show.

    Attributes:
        config: of the model.
        processor: of the model.
        inputs: what the processor made of the row.
        size: width and height of the image.
        tokens: how many image tokens there are.
    """

    config: Any
    processor: Any
    inputs: Mapping[str, Tensor]
    size: tuple[int, int]
    tokens: int


def square_boxes(shown: Shown) -> Tensor:
    """One grid of as many rows as columns over what the model sees of the image."""
    side = round(shown.tokens**0.5)
    if side * side != shown.tokens:
        raise ValueError(f"an image has {shown.tokens} tokens, which are no square grid; this processor is not known.")
    return grid_boxes(side, side, seen_region(shown.processor.image_processor, *shown.size))


def merged_boxes(shown: Shown) -> Tensor:
    """Qwen's grid, which keeps the proportions of the image, after patches were merged."""
    rows, columns = shown.inputs["image_grid_thw"][1:] // shown.processor.image_processor.merge_size
    return grid_boxes(int(rows), int(columns))


def tile_boxes(shown: Shown) -> Tensor:
    """Idefics 3's tiles in raster order, named in the prompt, and then the whole image; or the whole image alone."""
    text = shown.processor.tokenizer.decode(shown.inputs["input_ids"], skip_special_tokens=False)
    tiles = [(int(row), int(column)) for row, column in re.findall(r"<row_(\d+)_col_(\d+)>", text)]
    return _tiles(*max(tiles, default=(0, 0)), shown.tokens // (len(tiles) + 1))


def canvas_boxes(shown: Shown) -> Tensor:
    """InternVL's tiles, as many as fit the proportions of the image, and then the whole image."""
    by, tokens = shown.processor.image_processor, shown.processor.image_seq_length
    if shown.tokens == tokens:
        return _tiles(0, 0, tokens)
    tile = (by.size["height"], by.size["width"])
    columns, rows = get_optimal_tiled_canvas(shown.size[::-1], tile, by.min_patches, by.max_patches)
    return _tiles(rows, columns, tokens)


def anyres_boxes(shown: Shown) -> Tensor:
    """LLaVA-OneVision: the whole image, then the finer grid that is left without padding, each row with an end."""
    # The model's own packing of ones shows how many rows there are: each ends in a 0.
    tokens, config = shown.processor.num_image_tokens, SimpleNamespace(config=shown.config)
    ones = [torch.ones(len(shown.inputs["pixel_values"]), tokens, 1)]
    sizes, zero = shown.inputs["image_sizes"][None], torch.zeros(1)
    [packed], _ = LlavaOnevisionModel.pack_image_features(config, ones, sizes, zero, shown.config.vision_aspect_ratio)

    rows = int((packed == 0).sum())
    fine = grid_boxes(rows, (len(packed) - tokens) // rows - 1).unflatten(0, (rows, -1))
    ends = torch.zeros(rows, 1, 4)
    return torch.cat([_tiles(0, 0, tokens), torch.cat([fine, ends], dim=1).flatten(0, 1)])


def pooled_boxes(shown: Shown) -> Tensor:
    """Florence-2: a token of the whole image, then its grid."""
    return torch.cat([_tiles(0, 0, 1), _tiles(0, 0, shown.tokens - 1)])


def _tiles(rows: int, columns: int, tokens: int) -> Tensor:
    """Boxes of `tokens` a tile, a square grid each, and of as many over the whole image behind them."""
    side = round(tokens**0.5)
    tiles = grid_boxes(rows, columns).tolist() if rows else []
    return torch.cat([grid_boxes(side, side, region) for region in [*tiles, WHOLE]])


# Type of a model -> how its image tokens cover the image; one square grid unless it stands here.
BOXES: Mapping[str, Callable[[Shown], Tensor]] = {
    "idefics3": tile_boxes,
    "smolvlm": tile_boxes,
    "modernvbert": tile_boxes,
    "qwen2_5_vl": merged_boxes,
    "qwen3_vl": merged_boxes,
    "internvl": canvas_boxes,
    "llava_onevision": anyres_boxes,
    "florence2": pooled_boxes,
}
