"""Q-Formers: words look at learned queries, and those at patches. BLIP-2's matching model and InstructBLIP.

What a word looks at is the product of both hops: its attention over the learned queries times theirs over patches.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dual_distill.modeling import RecordedAttention

from . import foreign
from .foreign import Answers, Batch, Modules
from .layout import as_view, cross_attention, image_layout, patch_boxes, split_layout, text_layout
from .view import DirectionAttention, LayerAttention, TeacherView

load = foreign.load

_LAYER = r"qformer\.encoder\.layer\.(\d+)\.{part}\.attention$"


def inputs(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Make the batch of B images and B texts; the text tokens are those that the Q-Former reads."""
    batch = dict(processor(images=list(images), text=list(texts), padding=True, return_tensors="pt"))
    _, layout = text_layout(getattr(processor, "qformer_tokenizer", processor.tokenizer), texts)
    layout["text_index"] = layout["text_index"] + config.num_query_tokens
    boxes = patch_boxes(processor.image_processor, images, batch["pixel_values"], config.vision_config.patch_size)
    return batch | layout | image_layout(boxes)


def layers(model: Any) -> list[Modules]:
    """Pairs of modules: self-attention of a layer, and the cross-attention of the layer before, which fed it."""
    found = {
        part: {int(match[1]): name for name, _ in model.named_modules() if (match := re.search(path, name))}
        for part in ("attention", "crossattention")
        for path in [_LAYER.replace("{part}", part)]
    }
    fed = found["crossattention"]
    return [(name, fed[at - 1]) for at, name in found["attention"].items() if at - 1 in fed]


def view(model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None) -> TeacherView:
    """Run the model on a batch of `inputs`; arguments are those of `causal_vlm.view`."""
    foreign.check_no_answers(model, answers)
    read, layout = split_layout(batch)
    matches = "Retrieval" in type(model).__name__
    options = {"use_image_text_matching_head": True} if matches else {}
    outputs, recorded = foreign.run_recorded(model, {**read, **options}, layers(model), wanted)

    shown = [LayerAttention(_two_hops(words, queries, layout)) for words, queries in recorded]
    return as_view(layout, shown, match_scores=foreign.match_scores(outputs.logits_per_image) if matches else None)


def _two_hops(words: RecordedAttention, queries: RecordedAttention, layout: Mapping[str, Tensor]) -> DirectionAttention:
    """Attention of words over patches, by way of the learned queries, which stand first."""
    count = queries.queries.shape[2]
    first = DirectionAttention(words.queries[:, :, count:], words.repeated_keys[:, :, :count], words.scaling)
    every_query = layout["text_mask"].new_ones(len(layout["text_mask"]), count)
    second = cross_attention(queries)
    return DirectionAttention(given_probs=first.probs(every_query) @ second.probs(layout["image_mask"]))
