"""Which class stands for which head, by words that the command line and `data.Task.head` share."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForPreTraining,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)

BARE = "bare"
# Model types of ours, and for each the class of every head; "bare" has none.
HEADS: Mapping[str, Mapping[str, type[PreTrainedModel]]] = MappingProxyType(
    {
        FusionEncoderConfig.model_type: {
            BARE: FusionEncoderModel,
            "question_answering": FusionEncoderForQuestionAnswering,
            "images_and_text_classification": FusionEncoderForImagesAndTextClassification,
            "image_text_retrieval": FusionEncoderForImageTextRetrieval,
            "masked_lm": FusionEncoderForMaskedLM,
            "captioning": FusionEncoderForCaptioning,
            "pretraining": FusionEncoderForPreTraining,
        },
        DualEncoderConfig.model_type: {
            BARE: DualEncoderModel,
            "question_answering": DualEncoderForQuestionAnswering,
            "images_and_text_classification": DualEncoderForImagesAndTextClassification,
            "image_text_retrieval": DualEncoderForImageTextRetrieval,
            "pretraining": DualEncoderForPreTraining,
        },
    }
)
# Heads with one logit a label, whose labels a fresh head must be told.
LABELLED_HEADS = frozenset({"question_answering", "images_and_text_classification"})

# Parts of a saved head that another head takes over, by kind of model: (saved, wanted) -> parts. Where nothing is left
# to be drawn (`FOLLOWS`), the wanted head needs no `new_head`.
CARRIED: Mapping[str, Mapping[tuple[str, str], tuple[str, ...]]] = MappingProxyType(
    {
        FusionEncoderConfig.model_type: {
            ("pretraining", "image_text_retrieval"): ("itm_score",),
            ("pretraining", "masked_lm"): ("mlm_score",),
            ("masked_lm", "pretraining"): ("mlm_score",),
            ("pretraining", "captioning"): ("mlm_score",),
            ("masked_lm", "captioning"): ("mlm_score",),
        },
        DualEncoderConfig.model_type: {
            ("pretraining", "image_text_retrieval"): ("text_projection", "image_projection", "logit_scale"),
            ("image_text_retrieval", "pretraining"): ("text_projection", "image_projection", "logit_scale"),
        },
    }
)
FOLLOWS = frozenset(
    {
        ("pretraining", "image_text_retrieval"),
        ("pretraining", "masked_lm"),
        ("pretraining", "captioning"),
        ("masked_lm", "captioning"),
    }
)


def carried_head(
    head_weights: Mapping[str, torch.Tensor], model_type: str, saved: str | None, head: str
) -> dict[str, torch.Tensor]:
    """Return the weights that a head takes from the head that a checkpoint was saved with, under the wanted head's
    names.

    A score of retrieval (`rank_output`) is the matching head's logit of "matches" less that of "does not": its sigmoid
    is the probability that the matching head gave.

    Args:
        head_weights: of the saved head.
        model_type: of our configuration.
        saved: the head that they were saved with; None: not known.
        head: the one wanted.

    Returns:
        Nothing where the two share no part.

    Example:
        >>> weights = {"itm_score.fc.weight": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}
        >>> carried_head(weights, FusionEncoderConfig.model_type, "pretraining", "image_text_retrieval")
        {'rank_output.weight': tensor([[3., 1.]])}
    """
    parts = CARRIED[model_type].get((saved or "", head), ())
    carried = {name: weight for name, weight in head_weights.items() if name.split(".")[0] in parts}
    if "itm_score" not in parts:
        return carried
    return {name.replace("itm_score.fc", "rank_output"): weight[1:] - weight[:1] for name, weight in carried.items()}


def model_class(config: PreTrainedConfig, head: str) -> type[PreTrainedModel]:
    """Return our class for a configuration of ours and a head.

    Raises:
        ValueError: there is no such head for this kind of model.

    Example:
        >>> model_class(FusionEncoderConfig(), "masked_lm").__name__
        'FusionEncoderForMaskedLM'
    """
    classes = HEADS[config.model_type]
    if head not in classes:
        raise ValueError(f"there is no head {head!r} for a {config.model_type}; choose one of {', '.join(classes)}.")
    return classes[head]


def new_head_config(
    config: PreTrainedConfig, head: str, label_names: Sequence[str] | None = None, num_images: int | None = None
) -> PreTrainedConfig:
    """Return `config` with the labels and images of a head that is drawn anew.

    Args:
        config: of ours.
        head: one of `HEADS`.
        label_names: in the order of the logits; heads with labels need them, others have none.
        num_images: images a row, for classification; None: 1.

    Raises:
        ValueError: labels are missing, empty or there twice, or given to a head without labels; likewise for images.

    Example:
        >>> config = new_head_config(FusionEncoderConfig(), "images_and_text_classification", ["false", "true"], num_images=2)
        >>> config.id2label, config.num_images, config.modality_type_vocab_size
        ({0: 'false', 1: 'true'}, 2, 3)
    """
    if (label_names is None) == (head in LABELLED_HEADS):
        problem = (
            "needs label_names, the labels in the order of its logits"
            if label_names is None
            else "takes no label_names"
        )
        raise ValueError(f"a fresh head {head!r} {problem}.")
    if label_names is not None and (not label_names or len(set(label_names)) != len(label_names)):
        raise ValueError(
            f"label_names holds {len(label_names)} names, {len(set(label_names))} different; give each once."
        )
    if num_images is not None and (num_images < 1 or (num_images > 1 and head != "images_and_text_classification")):
        raise ValueError(
            f"num_images is {num_images} for a head {head!r}; only images_and_text_classification reads more than one."
        )
    fields = config.to_dict()
    if label_names is not None:
        fields["id2label"] = dict(enumerate(label_names))
        fields["label2id"] = {name: index for index, name in enumerate(label_names)}
    fields["num_images"] = num_images or 1
    if "modality_type_vocab_size" in fields:
        fields["modality_type_vocab_size"] = max(fields["modality_type_vocab_size"], 1 + fields["num_images"])
    return type(config)(**fields)


def extend_modalities(body: dict[str, torch.Tensor], num_modalities: int) -> dict[str, torch.Tensor]:
    """Give the modality table as many rows as asked for; new rows are copies of the last one.

    Example:
        >>> table = {"embeddings.token_type_embeddings.weight": torch.tensor([[0.0], [1.0]])}
        >>> extend_modalities(table, 3)["embeddings.token_type_embeddings.weight"].flatten()
        tensor([0., 1., 1.])
    """
    name = "embeddings.token_type_embeddings.weight"
    if name not in body or len(body[name]) >= num_modalities:
        return body
    table = body[name]
    return {**body, name: torch.cat([table, table[-1:].repeat(num_modalities - len(table), 1)])}


__all__ = [
    "BARE",
    "FOLLOWS",
    "HEADS",
    "LABELLED_HEADS",
    "carried_head",
    "extend_modalities",
    "model_class",
    "new_head_config",
]
