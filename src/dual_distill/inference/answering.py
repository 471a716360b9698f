"""Questions and images in, answers in words out: the pipeline in one call, for one image or many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor
from dual_distill.teachers import load_model, load_processor

from .pipeline import DualVisualQuestionAnsweringPipeline


def answer_questions(
    model: PreTrainedModel | str | Path,
    images: Any,
    questions: str | Sequence[str],
    processor: DualDistillProcessor | None = None,
    batch_size: int = 16,
) -> list[str]:
    """Answer one question about each image, or many about one; a dual encoder then reads the image once.

    Args:
        model: a model with answers or classes, or the name of its checkpoint (a ViLT's too); put into eval mode.
        images: one image for all questions, or a list of one each: a path, an http(s) URL, a PIL image or bytes; for a
            model that reads N images together, a list of lists of N.
        questions: one question for all images, or a list of one each.
        processor: None: that of the model's checkpoint.
        batch_size: rows a forward pass; the answers do not depend on it.

    Returns:
        The most probable answer of each pair, in order. `DualVisualQuestionAnsweringPipeline` gives more of them, with
        their probabilities.

    Raises:
        ImageError: an image cannot be used.
        ValueError: the numbers of images and questions differ, or no processor is known.

    Example:
        >>> answer_questions("no/such/folder", "photo.jpg", "what is it?")
        Traceback (most recent call last):
        ValueError: ...
    """
    if isinstance(model, str | Path):
        model, own_processor = load_model(model)
        processor = processor or own_processor
    elif processor is None and model.config._name_or_path:
        processor = load_processor(model.config._name_or_path)
    pipeline = DualVisualQuestionAnsweringPipeline(model, processor, device=model.device)

    rows = list(images) if isinstance(images, list | tuple) else [images]
    texts = [questions] if isinstance(questions, str) else list(questions)
    if len(rows) == 1:
        answers = pipeline(rows[0], texts, top_k=1, batch_size=batch_size)
        return [best[0]["answer"] for best in answers]

    if len(texts) == 1:
        texts *= len(rows)
    if len(texts) != len(rows):
        raise ValueError(f"there are {len(rows)} images and {len(texts)} questions; give as many, or one of either.")
    requests = [{"image": image, "question": text} for image, text in zip(rows, texts, strict=True)]
    return [best[0]["answer"] for best in pipeline(requests, top_k=1, batch_size=batch_size)]
