"""Causal vision-language models: the image stands first, so text looks at the image and never the other way.

SmolVLM, Idefics 3, Qwen2.5-VL, Qwen3-VL, LLaVA, LLaVA-OneVision, Gemma 3 and InternVL, as transformers has them.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import foreign
from .answers import answer_logits, yes_scores
from .foreign import Answers, Batch, Modules
from .layout import as_view, joint_attention, split_layout
from .prompts import prompt_inputs, read_template
from .view import TeacherView

load = foreign.load

# How a model that writes is asked whether text and image match: in the form of Qwen3-VL-Reranker.
MATCH_INPUTS = {
    "system": "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
    'that the answer can only be "yes" or "no".',
    "instruction": "<Instruct>: Retrieve the text that describes the image.<Query>:{image}\n<Document>:{text}",
}
MATCH_VIEW = {"yes_no": ("yes", "no")}

# Parts of a model that are not its language model.
_OF_THE_IMAGE = re.compile(r"vision|visual|image|connector|projector|perceiver")


def inputs(
    config: Any,
    processor: Any,
    images: Any,
    texts: Sequence[str],
    instruction: str = "{text}",
    system: str | None = None,
) -> dict[str, Tensor]:
    """Make the batch of the model's own chat template, the image before the text.

    Args:
        config: of the model.
        processor: its processor.
        images: B images.
        texts: B texts.
        instruction: what the user writes, around `{text}`: "{text} Answer in one word."; the image stands at `{image}`,
            or in front of it all.
        system: what the system says before that; None: nothing.
    """
    return prompt_inputs(config, processor, images, texts, read_template(processor, instruction, system))


@torch.no_grad()
def caption_images(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    request: str = "Describe the image in one sentence.",
    **generation: Any,
) -> list[str]:
    """Let a causal vision-language model write a caption of each image, for a student to learn from.

    Args:
        model: the model.
        processor: its processor.
        images: B images.
        request: what the user writes behind the image.
        **generation: of the model's `generate`; greedy and at most 40 tokens unless given.
    """
    read, _ = split_layout(inputs(model.config, processor, images, [request] * len(images)))
    told = {"max_new_tokens": 40, "do_sample": False, **generation}
    written = model.generate(**{name: tensor.to(model.device) for name, tensor in read.items()}, **told)
    captions = processor.tokenizer.batch_decode(written[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
    return [caption.strip() for caption in captions]


def layers(model: Any) -> list[Modules]:
    """Attention modules of the language model that see all that stands before them, not a window of it."""
    return [
        (name,)
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
        and not _OF_THE_IMAGE.search(name)
        and getattr(module, "sliding_window", None) is None
    ]


def view(
    model: Any,
    processor: Any,
    batch: Batch,
    wanted: Sequence[int],
    answers: Answers = None,
    yes_no: tuple[str, str] | None = None,
    **scoring: Any,
) -> TeacherView:
    """Run the model on a batch of `inputs`.

    Args:
        model: the model.
        processor: its processor.
        batch: of `inputs`.
        wanted: layers whose attention is shown, counted as in `layers`; negative counts from the last.
        answers: the student's, each of which is scored as the model's next words (`answer_logits`); None: none is.
        yes_no: the words of a reranker; how probable the first is against the second is how text and image match.
        **scoring: `best`, `keep`, `length` and `chunk_size` of `answer_logits`.
    """
    read, layout = split_layout(batch)
    outputs, recorded = foreign.run_recorded(model, {**read, "use_cache": answers is not None}, layers(model), wanted)
    shown = [joint_attention(attention, layout, causal=True) for [attention] in recorded]

    logits = match = None
    prompt, tokenizer = read_template(processor), processor.tokenizer
    if answers is not None:
        logits = answer_logits(model, tokenizer, read["attention_mask"], outputs, answers, prompt, **scoring)
    if yes_no is not None:
        match = yes_scores(tokenizer, outputs.logits, *yes_no, prompt)
    return as_view(layout, shown, logits=logits, match_scores=match)
