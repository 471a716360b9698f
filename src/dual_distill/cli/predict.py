"""`dual-distill predict MODEL --image ... "question" ...`: ask a checkpoint about pictures, or have it describe them."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, pipeline

from dual_distill.cli import evaluate_captions as captions
from dual_distill.data import CaptioningCollator, get_task
from dual_distill.inference import ANSWERING_TASK, load_image, prepack_linear_layers
from dual_distill.modeling import DualDistillProcessor, FusionEncoderForCaptioning
from dual_distill.teachers import load_model
from dual_distill.trainer import describe_images

_EPILOG = """\
The probabilities of a model with one right answer add up to 100 %. One trained on several people's answers (VQA v2, and
every ViLT with answers) gives each answer its own: two may both be right.

A model over regions takes --regions STORE, made of these pictures by `dual-distill regions` as it was for training. A
model that writes captions takes no questions.

examples:
  dual-distill predict runs/student --image photo.jpg "what is it?" "how many balls?" --top-k 3
  dual-distill predict path/to/vilt-vqa --image https://example.org/photo.jpg "what is it?"
  dual-distill predict runs/nlvr2/distilled --image left.png --image right.png "both show a dog."
  dual-distill predict runs/vqa_v2_regions/distilled --image photo.jpg --regions regions/photos "what is it?"
  dual-distill predict runs/coco_captions/distilled --image photo.jpg --regions regions/photos --num-beams 5\
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill predict",
        description="Ask a checkpoint about pictures: the most probable answers to each question about each picture.\n"
        "A model that reads N pictures together (NLVR2: 2) takes --image N at a time, and statements in place of "
        "questions.\n"
        "A model that writes captions describes each picture.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="checkpoint folder or Hub repository (also owner/name@revision), ours or a ViLT")
    parser.add_argument("questions", nargs="*", metavar="question", help="question or statement about the pictures")
    parser.add_argument(
        "--image",
        action="append",
        required=True,
        dest="images",
        metavar="FILE_OR_URL",
        help="a picture; may be repeated",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="answers a question (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="questions a forward pass (default: %(default)s)"
    )
    captions.add_options(parser)
    parser.add_argument("--revision", metavar="NAME", help="branch, tag, commit or refs/pr/N of a Hub repository")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 ... (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Answer and print."""
    # Intermixed, so that questions may stand before, between and after the options.
    options = make_parser().parse_intermixed_args(words)
    with redirect_stdout(sys.stderr):
        predictions = predict(options)
    result = {"model": options.model, "predictions": predictions}
    print(json.dumps(result, ensure_ascii=False) if options.json else table(predictions))


def predict(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Load, and ask every question about every picture (or group of pictures that are read together), or describe them."""
    model, processor = load_model(
        options.model, revision=options.revision
    )  # a student of ours, too; a ViLT is converted
    prepack_linear_layers(model)
    of_regions = captions.region_options(options, model.config)
    if isinstance(model, FusionEncoderForCaptioning):
        return describe(options, model, processor, of_regions)
    captions.refuse_writing(options, f"{options.model!r} answers questions and writes nothing")
    if not options.questions:
        raise ValueError(
            f"{options.model!r} answers questions, but there is none; write one or more behind the options."
        )
    answer = pipeline(ANSWERING_TASK, model=model, processor=processor, device=options.device, **of_regions)
    together = answer.model.num_images
    if len(options.images) % together:
        raise ValueError(
            f"there are {len(options.images)} images, but {options.model} reads {together} together; give --image "
            f"{together} "
            "times for each group."
        )
    groups = [options.images[start : start + together] for start in range(0, len(options.images), together)]
    requests = [{"image": group, "question": options.questions} for group in groups]
    answers = answer(requests, top_k=options.top_k, batch_size=options.batch_size)
    return [
        {"images": group, "question": question, "answers": best}
        for group, of_group in zip(groups, answers, strict=True)
        for question, best in zip(options.questions, of_group, strict=True)
    ]


def describe(
    options: argparse.Namespace, model: PreTrainedModel, processor: DualDistillProcessor, of_regions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write a caption about each picture."""
    if options.questions:
        raise ValueError(f"{options.model!r} writes captions and answers nothing; leave {options.questions[0]!r} out.")
    task = get_task("coco_captioning")
    columns: dict[str, Any] = {
        task.image_columns[0]: [load_image(image, repr(image)) for image in options.images],
        str(task.image_id_column): list(range(len(options.images))),
    }
    features = {task.image_columns[0]: datasets.Image(), str(task.image_id_column): datasets.Value("int64")}
    # Pixels as they are, in PNG, so that a store knows them again.
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features))
    rows = rows.cast_column(task.image_columns[0], datasets.Image(decode=False))
    collator = CaptioningCollator(processor, task, image_cache_mb=0, **of_regions)
    written = describe_images(
        model.to(options.device), rows, collator, options.batch_size, **captions.writing_options(options)
    )
    return [{"images": [image], "caption": text} for image, text in zip(options.images, written.values(), strict=True)]


def table(predictions: list[dict[str, Any]]) -> str:
    """Lay predictions out for reading: a line a caption, or a block a question, probabilities in per cent."""
    if "caption" in predictions[0]:
        return "\n".join(f"{prediction['images'][0]}: {prediction['caption']}" for prediction in predictions)
    width = max(len(answer["answer"]) for prediction in predictions for answer in prediction["answers"])
    blocks = []
    for prediction in predictions:
        lines = [f"{', '.join(prediction['images'])}: {prediction['question']}"]
        lines += [f"  {answer['answer']:<{width}}  {100 * answer['score']:5.1f} %" for answer in prediction["answers"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
