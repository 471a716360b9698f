"""Ask a checkpoint about images: the most probable answers to each question about each image, or a caption of each.

A model that reads N images together (NLVR2: 2) takes --image N at a time, and sentences in place of questions. A model
that writes captions describes each image, and takes no questions.

The probabilities of a model with one right answer add up to 100 %. One trained on several people's answers (VQA v2, and
every ViLT with answers) gives each answer its own: two may both be right.

A model over regions takes --regions PATH, made of these images by `dual-distill regions` as it was for training.

Examples:
  dual-distill predict runs/student --image photo.jpg "what is it?" "how many balls?" --top-k 3
  dual-distill predict path/to/vilt-vqa --image https://example.org/photo.jpg "what is it?"
  dual-distill predict runs/nlvr2/distilled --image left.png --image right.png "both show a dog."
  dual-distill predict runs/vqa_v2_regions/distilled --image photo.jpg --regions regions/photos "what is it?"
  dual-distill predict runs/coco_captions/distilled --image photo.jpg --regions regions/photos --num-beams 5
"""

import argparse
from typing import Any

from transformers import PreTrainedModel, pipeline

from dual_distill.inference import ANSWERING_TASK, load_image, prepack_linear_layers
from dual_distill.modeling import DualDistillProcessor, FusionEncoderForCaptioning
from dual_distill.teachers import load_model
from dual_distill.trainer import captions_of_images

from . import evaluate as captions
from .options import TOP_K, add_options, answer_blocks, option, refuse_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add model, questions and images."""
    add_options(parser, "model")
    parser.add_argument("questions", metavar="question", nargs="*", help="question or sentence about an image")
    option(parser, "--image", "PATH_OR_URL", "may be repeated", action="append", required=True)
    add_options(parser, "--top-k", "--batch-size", "--revision", "--device")
    parser.set_defaults(batch_size=16)
    captions.add_caption_options(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model, and let it answer or describe."""
    model, processor = load_model(options.model, options.revision)
    prepack_linear_layers(model)
    of_regions = captions.region_options(options, model.config)
    writes = isinstance(model, FusionEncoderForCaptioning)
    predictions = (describe if writes else answer)(options, model, processor, of_regions)
    return {"model": options.model, "predictions": predictions}


def answer(
    options: argparse.Namespace, model: PreTrainedModel, processor: DualDistillProcessor, of_regions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Answer every question about every image, or group of images that are read together."""
    why = f"is given, but {options.model!r} answers questions and writes nothing"
    refuse_options(options, captions.OF_CAPTIONS, why)
    if not options.questions:
        raise ValueError(f"{options.model!r} answers questions, but there is none; write one or more.")

    answering = pipeline(ANSWERING_TASK, model=model, processor=processor, device=options.device, **of_regions)
    together = answering.model.num_images
    if len(options.image) % together:
        given = f"there are {len(options.image)} images, but {options.model} reads {together} together"
        raise ValueError(f"{given}; give --image {together} times for each group.")

    # Each group of images is asked every question.
    groups = [options.image[start : start + together] for start in range(0, len(options.image), together)]
    requests = [{"image": group, "question": options.questions} for group in groups]
    top_k = TOP_K if options.top_k is None else options.top_k
    answers = answering(requests, top_k=top_k, batch_size=options.batch_size)
    return [
        {"images": group, "question": question, "answers": best}
        for group, of_group in zip(groups, answers, strict=True)
        for question, best in zip(options.questions, of_group, strict=True)
    ]


def describe(
    options: argparse.Namespace, model: PreTrainedModel, processor: DualDistillProcessor, of_regions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write a caption about each image."""
    if options.questions:
        raise ValueError(f"{options.model!r} writes captions and answers nothing; leave {options.questions[0]!r} out.")
    refuse_options(options, ["top_k"], f"is given, but {options.model!r} writes captions")

    # Regions are found by the pixels of the whole image.
    size = None if of_regions else processor.jpeg_size
    images = [load_image(image, repr(image), jpeg_size=size) for image in options.image]
    told = {"reading": of_regions, **captions.writing_options(options)}
    written = captions_of_images(model.to(options.device), processor, images, options.batch_size, **told)
    return [{"images": [image], "caption": text} for image, text in zip(options.image, written, strict=True)]


def table(result: dict[str, Any]) -> str:
    """Lay predictions out for reading: a line a caption, or a block a question, probabilities in per cent."""
    predictions = result["predictions"]
    if "caption" in predictions[0]:
        return "\n".join(f"{row['images'][0]}: {row['caption']}" for row in predictions)
    return answer_blocks([(f"{', '.join(row['images'])}: {row['question']}", row["answers"]) for row in predictions])
