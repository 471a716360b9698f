"""Which family of teachers a model belongs to, and the four functions that make one."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from dual_distill.modeling import DualEncoderConfig, FusionEncoderConfig

from . import causal_vlm, cross_attention, foreign, fusion, joint, qformer
from .checkpoint import fetch, first_line
from .foreign import Answers, Batch, Modules
from .loading import LoadedModel, ModelClass, load_model
from .view import TeacherView


class TeacherFamily(Protocol):
    """Four functions, as each module of a family has them; a user's own may be a class of static methods.

    `FAMILIES["my_type"] = MyFamily` makes models of that `config.model_type` teachers.
    """

    @property
    def load(self) -> Any:
        """`load(checkpoint, revision=None, **options)` -> model in eval mode and processor."""

    def inputs(self, config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
        """Make what the model reads of B images and B texts, and the six tensors of `LAYOUT`."""

    def layers(self, model: Any) -> list[Modules]:
        """Names of the attention modules of each layer in which text and image meet."""

    def view(
        self, model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None
    ) -> TeacherView:
        """Run the model on such a batch, and show the attention of the layers `wanted`, and its logits."""


FAMILIES: dict[str, TeacherFamily] = {
    **dict.fromkeys([FusionEncoderConfig.model_type, DualEncoderConfig.model_type, "vilt"], fusion),
    **dict.fromkeys(["modernvbert", "florence2", "paligemma", "visual_bert", "flava"], joint),
    **dict.fromkeys(["smolvlm", "idefics3", "qwen2_5_vl", "qwen3_vl", "llava", "llava_onevision"], causal_vlm),
    **dict.fromkeys(["gemma3", "internvl"], causal_vlm),
    **dict.fromkeys(["blip", "bridgetower", "lxmert"], cross_attention),
    **dict.fromkeys(["blip-2", "instructblip"], qformer),
}
"""Type of a model -> its family."""


def family_of(config: PreTrainedConfig) -> TeacherFamily:
    """Return the family of a model.

    Raises:
        ValueError: there is none for its type.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        way_out = "write its load, inputs, layers and view, and put them into teachers.FAMILIES (docs/teachers.md)"
        way_out += "; a model whose text never looks at an image, as CLIP's, can be a tower alone (docs/towers.md)"
        raise ValueError(f"no teacher family knows models of type {config.model_type!r}, but {known}; {way_out}.")
    return FAMILIES[config.model_type]


def empty_teacher(checkpoint: str | Path, revision: str | None = None) -> Any:
    """Build a model of another family with weights of no meaning: enough to count it.

    Raises:
        ValueError: no family knows the type of the model.
    """
    config = AutoConfig.from_pretrained(fetch(str(checkpoint), revision, weights=False), trust_remote_code=False)
    family_of(config)
    return foreign.saved_class(config)._from_config(config)


def load_teacher(
    checkpoint: str | Path,
    revision: str | None = None,
    model_class: ModelClass | None = None,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> LoadedModel:
    """Load a model that teaches: ours, a ViLT, which is converted, or one of any family of `FAMILIES`; frozen.

    Args:
        checkpoint: a folder, or `owner/name` or `owner/name@revision` on the Hub.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        model_class: of ours, as for `load_model`; other models are loaded as the class that they were saved as.
        trust_remote_code: whether code of the repository may run; never unless given here, and ours needs none.
        **options: of ours, those of `load_model`; of others, those of `from_pretrained`, such as `dtype` (float32
            unless given), `device_map` or `quantization_config`.

    Returns:
        Model and processor.

    Raises:
        ValueError: as `load_model`, or no family knows the type of the model.
    """
    source = str(checkpoint)
    folder: Any = source if trust_remote_code else fetch(source, revision, weights=False)
    is_there = trust_remote_code or Path(folder, "config.json").is_file()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code) if is_there else None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{source!r} has no configuration that can be read: {first_line(error)}.") from error
    family: TeacherFamily = fusion if config is None or model_class is not None else family_of(config)
    if family is not fusion:
        options |= {"trust_remote_code": True} if trust_remote_code else {}
        loaded = LoadedModel(*family.load(source, revision, **options))
    else:
        if unknown := options.keys() - inspect.signature(load_model).parameters.keys():
            names, way_out = (", ".join(sorted(unknown)), "which others take; leave them out, and move it by .to()")
            raise ValueError(f"{source!r} is loaded as a model of ours, without {names}, {way_out}.")
        loaded = load_model(source, revision, model_class, **options)
    loaded.model.requires_grad_(False)
    return loaded
