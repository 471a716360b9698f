"""`pipeline("dual-visual-question-answering", model=...)`: questions to images, for both kinds of encoder.

A model over regions takes the store that holds those of its images.

What is unusual: a request is one image with any number of questions, and a dual encoder reads the image once for all of
them. Transformers' own batching cuts a batch into single tensors, which knows neither padding of images nor shared
images, so requests travel whole: they are prepared one by one, encoded `batch_size` at a time, and their questions are
answered `batch_size` rows a forward pass.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from dual_distill import data
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig
from dual_distill.regions import RegionStore
from dual_distill.teachers import LABELLED, load_model, load_processor

from .queries import best_answers, check_at_least_1
from .sources import check_text, load_image

ANSWERING_TASK = "dual-visual-question-answering"
_ANSWERING_MODELS: dict[str, type[PreTrainedModel]] = {model.__name__: model for model in LABELLED}
_BATCH_SIZE = 16
_TOP_K = 5
_LONGEST_NAME = 40


@dataclass(frozen=True)  # transformers would take a tuple apart
class PreparedRequest:
    """One image (or the N images that a model reads together) and the questions to it.

    Attributes:
        images: N tensors `(3, h, w)`, or the regions of N images.
        questions: one or more.
        is_list: whether the questions came as a list, and the answers go as one.
    """

    images: list[Any]
    questions: list[str]
    is_list: bool


class DualVisualQuestionAnsweringPipeline(Pipeline):
    """Answers questions about images with a fusion or dual encoder that has an answer or class head.

    Made by `transformers.pipeline("dual-visual-question-answering", model=path_or_name)`, once `dual_distill` is
    imported; a model object needs `processor=` beside it. A dual encoder encodes each image once, however many
    questions it is asked.

    Probabilities: where the config's `problem_type` is "multi_label_classification" (VQA v2, trained on soft scores),
    each answer has its own, the sigmoid of its logit: what the model expects the VQA score of that answer to be. They
    do not add up to 1, and should not: two answers may both be right. Otherwise (one right answer or class a row) they
    are the softmax over all labels and add up to 1.

    Args:
        model: a `FusionEncoderFor...` or `DualEncoderFor...` with `QuestionAnswering` or `ImagesAndTextClassification`;
            put into eval mode.
        processor: its `DualDistillProcessor`.
        top_k: answers a question, most probable first (default 5).
        batch_size: requests encoded at once and rows a forward pass (default 16); the answers do not depend on it.
        regions: for a model that reads regions, the store that holds those of the images, which are found by their
            content.
        num_tags: with regions, most object tags beside a question; 0 for a model that learnt none.
        max_tag_length: with regions and tags, how many of the model's positions for words tags may take.
        **kwargs: as for `transformers.Pipeline`: `device`, `num_workers`.

    Raises:
        ValueError: the model has no such head, there is no processor, or a model over regions has no store (or the
            reverse).

    Example:
        >>> from PIL import Image
        >>> from transformers import ViltImageProcessorPil, pipeline
        >>> from dual_distill.data import train_tokenizer
        >>> from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering
        >>> tokenizer = train_tokenizer(["is it red?", "what is it?"])
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": len(tokenizer), **tower},
        ...     vision_config={"image_size": 32, "patch_size": 16, **tower},
        ...     id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
        >>> answer = pipeline(
        ...     "dual-visual-question-answering", model=DualEncoderForQuestionAnswering(config), device="cpu",
        ...     processor=DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer))
        >>> answers = answer(Image.new("RGB", (40, 30)), ["is it red?", "what is it?"], top_k=1)
        >>> len(answers), sorted(answers[0][0])
        (2, ['answer', 'score'])
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor | None = None,
        regions: RegionStore | None = None,
        num_tags: int = data.NUM_TAGS,
        max_tag_length: int = data.TAG_LENGTH,
        **kwargs: Any,
    ) -> None:
        _answering_class(type(model).__name__)
        if processor is None:
            raise ValueError("The pipeline has a model but no processor; give processor=, or a checkpoint as model=.")
        reads_regions = getattr(model.config, "visual_inputs", "patches") == "regions"
        if reads_regions != (regions is not None):
            unread = "pixels, but regions are given; leave them out"
            needed = "regions; give regions=RegionStore(folder)"
            raise ValueError(f"The model reads {needed if reads_regions else unread}.")

        super().__init__(model=model.eval(), processor=processor, **kwargs)
        self._regions, self._num_tags, self._max_tag_length = regions, num_tags, max_tag_length
        # A tokenizer may let through more than the model's position table holds.
        positions = model.config.max_position_embeddings
        tag_length = max_tag_length if regions is not None and num_tags > 0 else 0
        self._max_tokens = min(processor.tokenizer.model_max_length, positions - tag_length)

    def __call__(
        self,
        image: Any,
        question: str | Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Answer one request, or many.

        Args:
            image: a path, an http(s) URL, a PIL image or bytes; for a model that reads N images together (NLVR2: 2), a
                list of N. Or, without `question`, requests as `{"image": ..., "question": ...}`: one, a list of them,
                or a generator or data set of them, which is answered lazily.
            question: a question, or a list of questions to the same image.
            top_k: answers a question; None: that of the pipeline.
            batch_size: None: that of the pipeline.
            num_workers: processes that prepare images; None: that of the pipeline, or none but this one.

        Returns:
            For one question a list of `{"answer": label, "score": probability}`, most probable first; for a list of
            questions a list of those; for a list of requests a list of whichever each asked for; else an iterator.

        Raises:
            ImageError: an image is missing or cannot be used; the message names the request by its question.
            ValueError: a question is empty, a key is missing, or the number of images is not the model's.
        """
        # One request, or many of them: a list is answered at once, anything else lazily.
        is_single = question is not None or isinstance(image, Mapping)
        requests = {"image": image, "question": question} if question is not None else image
        requests = [requests] if is_single else requests
        if isinstance(requests, str | bytes) or not isinstance(requests, Sized | Iterable):
            given, keys = f"an image ({type(image).__name__}) without a question", '{"image": ..., "question": ...}'
            raise ValueError(f"There is {given}; call it with image and question, or with requests {keys}.")

        params = self._postprocess_params | self._sanitize_parameters(top_k=top_k)[2]
        batch_size = batch_size if batch_size is not None else self._batch_size or _BATCH_SIZE
        check_at_least_1("batch_size", batch_size)

        workers = num_workers if num_workers is not None else self._num_workers or 0
        if not isinstance(requests, list | tuple):
            return self._answers(requests, batch_size, workers, params)
        order = self._order(requests)
        answers = data.in_order(
            order, list(self._answers([requests[row] for row in order], batch_size, workers, params))
        )
        return answers[0] if is_single else answers

    def _order(self, requests: Sequence[Any]) -> list[int]:
        """Return the order in which images of like shape share a batch; as it is where nothing is padded."""
        keys, is_read = None, self._regions is None and all(isinstance(one, Mapping) for one in requests)
        if len(requests) > 1 and is_read and data.varies_in_shape(self.processor):
            rows = [(one.get("image"), one.get("question")) for one in requests]
            keys = [data.shape_key(image if isinstance(image, list | tuple) else [image], text) for image, text in rows]
        return data.grouped_order(keys, len(requests))

    def _sanitize_parameters(self, top_k: int | None = None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if top_k is not None:
            check_at_least_1("top_k", top_k)
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def _answers(self, requests: Any, batch_size: int, num_workers: int, params: dict[str, Any]) -> Iterator[Any]:
        """Answer requests in order, `batch_size` at a time."""
        is_sized = isinstance(requests, Sized)
        prepared = (PipelineDataset if is_sized else PipelineIterator)(requests, self.preprocess, {})
        # Two workers would each run through a generator of their own.
        workers = num_workers if is_sized else min(num_workers, 1)
        for batch in DataLoader(prepared, batch_size=batch_size, num_workers=workers, collate_fn=list):
            logits = self.forward(batch, batch_size=batch_size)
            for request, rows in zip(batch, logits, strict=True):
                yield self.postprocess((request, rows), **params)

    def preprocess(self, request: Mapping[str, Any]) -> PreparedRequest:
        """Check a request, fetch its images and bring them to the model's size."""
        for key in ("image", "question"):
            if key not in request:
                raise ValueError(f"A request has no {key!r} but only {', '.join(request) or 'nothing'}; it needs both.")

        is_list = isinstance(request["question"], list | tuple)
        questions = list(request["question"]) if is_list else [request["question"]]
        if not questions:
            raise ValueError("A request has an empty list of questions; give it one or more.")
        for index, question in enumerate(questions):
            check_text(f"Question {index} of a request", question)

        # A request has no name of its own: errors call it by its question.
        name = questions[0] if len(questions[0]) <= _LONGEST_NAME else f"{questions[0][:_LONGEST_NAME]}..."
        images = request["image"] if isinstance(request["image"], list | tuple) else [request["image"]]
        if len(images) != self.model.num_images:
            wrong = f"has {len(images)} images, but the model reads {self.model.num_images} together"
            raise ValueError(f"The request {name!r} {wrong}; give one request for each group.")
        return PreparedRequest([self._prepare(image, repr(name)) for image in images], questions, is_list)

    def _prepare(self, value: Any, name: str) -> Any:
        image = load_image(value, name, jpeg_size=None if self._regions else self.processor.jpeg_size)
        if self._regions is not None:
            return self._regions.find_image(image, name).first(self.model.config.max_regions)
        return data.resize_image(self.processor.prepare_image, image, name)

    def _forward(self, requests: list[PreparedRequest], batch_size: int) -> list[torch.Tensor]:
        """Return the logits of each request's questions, `(questions, labels)` float32 on the CPU."""
        stored: dict[str, torch.Tensor] = {}
        if isinstance(self.model.config, DualEncoderConfig):
            features = self.model.get_image_features(**self._image_inputs([request.images for request in requests]))
            stored = {"image_pooler_output": features.pooler_output}
            if self.model.config.interaction_layers:
                stored = {name: features[name] for name in ("image_token_embeds", "image_token_mask")}

        # Images are encoded by now, or go with each question where the model reads both together.
        rows = [(index, question) for index, request in enumerate(requests) for question in request.questions]
        logits = []
        for start in range(0, len(rows), batch_size):
            # Questions of several requests share a forward pass; each row takes the images of its own request.
            indices, questions = zip(*rows[start : start + batch_size], strict=True)
            images = [requests[index].images for index in indices]
            inputs = self._text_inputs(list(questions), images)
            if stored:
                inputs |= {name: tensor[list(indices)] for name, tensor in stored.items()}
            else:
                inputs |= self._image_inputs(images)
            logits.append(self.model(**inputs).logits.float().cpu())
        return list(torch.cat(logits).split([len(request.questions) for request in requests]))

    def _text_inputs(self, questions: list[str], images: list[list[Any]]) -> dict[str, torch.Tensor]:
        """Tokenize questions, behind each the tags of its regions."""
        if self._regions is None:
            batch = self.processor.encode_text(questions, max_length=self._max_tokens)
        else:
            tags = [data.distinct_tags(row, self._num_tags) for row in images]
            limits = {"max_text_length": self._max_tokens, "max_tag_length": self._max_tag_length}
            batch = data.tag_texts(self.processor.tokenizer, questions, tags, **limits)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _image_inputs(self, images: list[list[Any]]) -> dict[str, torch.Tensor]:
        if self._regions is not None:
            return {name: tensor.to(self.device) for name, tensor in data.pad_regions(images).items()}
        batch = {name: tensor.to(self.device) for name, tensor in self.processor.pad_images(images).items()}
        return batch | {"pixel_values": batch["pixel_values"].to(self.model.dtype)}

    def postprocess(self, answered: tuple[PreparedRequest, torch.Tensor], top_k: int = _TOP_K) -> Any:
        """Turn logits into the most probable answers."""
        request, logits = answered
        answers = best_answers(self.model.config, logits, top_k)
        return answers if request.is_list else answers[0]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save model and processor.

        Transformers' own would also write into the config that this task needs code from the repository, and the folder
        could no longer be loaded without trusting it.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class AnsweringModel:
    """Loads a checkpoint with the class that its config names; what transformers' `pipeline` calls for this task.

    Example:
        >>> AnsweringModel.from_pretrained("no/such/folder")
        Traceback (most recent call last):
        OSError: ...
    """

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        """Load a model with an answer or class head.

        Args:
            name: folder or Hub repository.
            **kwargs: as for `PreTrainedModel.from_pretrained`.

        Returns:
            One of the four classes that the pipeline takes.

        Raises:
            ValueError: the checkpoint is of another class.
        """
        kwargs.pop("trust_remote_code", None)
        hub = {key: kwargs[key] for key in ("revision", "token", "local_files_only", "cache_dir") if key in kwargs}
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        [architecture, *_] = config.architectures or ["a model without a name"]
        return _answering_class(architecture).from_pretrained(name, **kwargs)


def _answering_class(name: str) -> type[PreTrainedModel]:
    if name not in _ANSWERING_MODELS:
        known = f"{', '.join(_ANSWERING_MODELS)}; training with new_head makes one of it"
        raise ValueError(f"{name} gives no answers; the pipeline takes {known}.")
    return _ANSWERING_MODELS[name]


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

    # One image with many questions is one request, so that it is read once.
    rows = list(images) if isinstance(images, list | tuple) else [images]
    texts = [questions] if isinstance(questions, str) else list(questions)
    if len(rows) == 1:
        requests = [{"image": rows[0], "question": texts}]
    else:
        texts = texts * len(rows) if len(texts) == 1 else texts
        if len(texts) != len(rows):
            given = f"there are {len(rows)} images and {len(texts)} questions"
            raise ValueError(f"{given}; give as many, or one of either.")
        requests = [{"image": image, "question": [text]} for image, text in zip(rows, texts, strict=True)]

    answered = pipeline(requests, top_k=1, batch_size=batch_size)
    return [best[0]["answer"] for answers in answered for best in answers]


PIPELINE_REGISTRY.register_pipeline(
    ANSWERING_TASK, pipeline_class=DualVisualQuestionAnsweringPipeline, pt_model=(AnsweringModel,), type="multimodal"
)
