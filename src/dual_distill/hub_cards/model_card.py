"""The model card, from what really happened: config.json and the weights' headers say what it is, `run.json` how it
came about.

The template holds sentences, this file decides which facts they get. What is not known is left out, never guessed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from .adapter import read_card
from .checkpoint_folder import CARD, PICTURE, CheckpointFiles, collect
from .hand_written import Card, render_card
from .run_record import RUN_FILE, Origin, RunRecord, read_run
from .shipped_code import auto_class, split_architecture

_TEMPLATE = "model_card.md.jinja"
PIPELINE_TAGS = {
    "ForQuestionAnswering": "visual-question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCaptioning": "image-to-text",
}
"""Head -> the Hub's name of its task; heads that the Hub has no name for get none."""

_TASKS = {
    "ForQuestionAnswering": "answers questions about images, from a fixed list of answers",
    "ForImagesAndTextClassification": "classifies a sentence about images",
    "ForImageTextRetrieval": "scores how well a text and an image match",
    "ForMaskedLM": "fills in masked words of a text about an image",
    "ForCaptioning": "writes captions of images",
    "ForPreTraining": "was pre-trained on images and texts",
    "Model": "gives vectors of texts and images, without a head for a task",
}
_TAGS = ("dual_distill", "vision-language", "distillation", "dual-encoder", "fusion-encoder")
# What the card decides itself; other keys of a README's metadata stay as they are.
_OURS = ("tags", "base_model", "base_model_relation", "pipeline_tag", "library_name", "datasets", "model-index")
# The card says these elsewhere, or they change nothing of what is learned; run.json holds them.
_NOT_WORTH_NAMING = {
    "architecture", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_height",
    "image_width", "patch_size", "max_text_length", "seed", "per_device_eval_batch_size", "logging_steps", "logging_strategy",
    "eval_steps", "eval_strategy", "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers",
    "image_cache_mb",
}  # fmt: skip
_DIGITS = 4  # of a share: a hundredth of a per cent
_SHOWN_OF_A_DIGEST = len("sha256:") + 12
PAPERS = {
    "dide": {
        "name": "cross-modal attention distillation (DiDE)",
        "reference": "Wang et al., *Distilled Dual-Encoder Model for Vision-Language Understanding*, EMNLP 2022",
        "url": "https://arxiv.org/abs/2112.08723",
        "bibtex": "@inproceedings{wang2022distilled,\n"
        "  title = {Distilled Dual-Encoder Model for Vision-Language Understanding},\n"
        "  author = {Wang, Zekun and Wang, Wenhui and Zhu, Haichao and Liu, Ming and Qin, Bing and Wei, Furu},\n"
        "  booktitle = {EMNLP},\n  year = {2022},\n  url = {https://arxiv.org/abs/2112.08723}\n}",
    },
    "distillvlm": {
        "name": "attention matrices and noise-contrastive hidden states (DistillVLM)",
        "reference": "Fang et al., *Compressing Visual-linguistic Model via Knowledge Distillation*, ICCV 2021",
        "url": "https://arxiv.org/abs/2104.02096",
        "bibtex": "@inproceedings{fang2021compressing,\n"
        "  title = {Compressing Visual-linguistic Model via Knowledge Distillation},\n"
        "  author = {Fang, Zhiyuan and Wang, Jianfeng and Hu, Xiaowei and Wang, Lijuan and Yang, Yezhou and Liu, "
        "Zicheng},\n"
        "  booktitle = {ICCV},\n  year = {2021},\n  url = {https://arxiv.org/abs/2104.02096}\n}",
    },
}
"""Method of a run -> what the card says and cites."""


def make_card(
    checkpoint: CheckpointFiles,
    run: RunRecord | None,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    with_code: bool = False,
    license_name: str | None = None,
    kept: Card | None = None,
) -> str:
    """Write the card of a checkpoint.

    Args:
        checkpoint: its files.
        run: how it came about; None: not known, and the card holds no numbers of quality.
        repo_id: where it will lie; None: the quick start loads from the folder that it is run in.
        revision: branch that it is pushed to; None: the main one.
        with_code: whether the code lies beside it.
        license_name: the Hub's identifier of its licence; None: that of the README's metadata, if any.
        kept: an earlier README, whose hand-written part and further metadata stay.

    Returns:
        The text of README.md.

    Raises:
        ValueError: config.json names an architecture that this version does not have.
    """
    config = checkpoint.config
    [architecture] = config.get("architectures") or [""]
    family, head = split_architecture(architecture)
    old = kept.metadata if kept else {}
    license_name = license_name or old.get("license")
    # Without code, transformers alone cannot load it: the library that can is named.
    library = "peft" if checkpoint.adapter else "transformers" if with_code else "dual_distill"
    metadata = {
        **_metadata(checkpoint, run, repo_id, library, old.get("tags") or ()),
        **{name: value for name, value in old.items() if name not in _OURS},
        **({"license": license_name} if license_name else {}),
    }
    facts = {
        **(_shape(checkpoint) if checkpoint.adapter is None else {}),
        "title": repo_id.split("/")[-1] if repo_id else architecture,
        "kind": f"{'dual' if family == 'DualEncoder' else 'fusion'} encoder",
        "is_distilled": run is not None and run.method in PAPERS,
        "is_dual": family == "DualEncoder",
        "task": _TASKS[head],
        "architecture": architecture,
        "parameters": _millions(checkpoint.parameters),
        "num_images": config.get("num_images", 1),
        "reads_regions": config.get("visual_inputs") == "regions",
        "max_regions": config.get("max_regions", 50),
        "region_feature_size": config.get("region_feature_size", 2048),
        "writes_captions": head == "ForCaptioning",
        "has_labels": head in ("ForQuestionAnswering", "ForImagesAndTextClassification"),
        "label_word": "answers" if head == "ForQuestionAnswering" else "classes",
        "source": repo_id or ".",
        "revision": revision,
        "with_code": with_code,
        "auto_class": auto_class(architecture),
        "adapter": checkpoint.adapter,
        "picture": PICTURE if PICTURE in checkpoint.files else None,
        "has_processor": "processor_config.json" in checkpoint.files,
        "license": license_name,
        "run": run,
        "run_file": RUN_FILE if RUN_FILE in checkpoint.files else None,
        "paper": PAPERS.get(run.method) if run else None,
        "learned": _learned(run),
        "metrics": _metric_rows(run),
        "blind": _no_better_than_blind(run),
        "settings": _settings(run),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["origin"] = _origin
    return render_card(metadata, environment.get_template(_TEMPLATE).render(facts), kept)


def write_card(folder: str | Path, **options: Any) -> Path:
    """Write README.md into the folder of a checkpoint; the hand-written part of one that is there stays.

    Args:
        folder: of the checkpoint, see `collect`.
        **options: `repo_id`, `revision`, `with_code`, `license_name` of `make_card`.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no checkpoint that may be published.
    """
    file = Path(folder, CARD)
    card = make_card(collect(folder), read_run(folder), kept=read_card(file), **options)
    file.write_text(card, encoding="utf-8")
    return file


def _metadata(
    checkpoint: CheckpointFiles, run: RunRecord | None, repo_id: str | None, library: str, old_tags: Sequence[str]
) -> dict[str, Any]:
    [architecture] = checkpoint.config["architectures"]
    family, head = split_architecture(architecture)
    tags = ["dual_distill", "vision-language", "dual-encoder" if family == "DualEncoder" else "fusion-encoder"]
    if run is not None and run.method in PAPERS:
        tags.append("distillation")
    if checkpoint.adapter is not None:
        tags.append(checkpoint.adapter.kind.lower())
    fields: dict[str, Any] = {
        "tags": [*tags, *(tag for tag in old_tags if tag not in _TAGS)],
        "library_name": library,
        "pipeline_tag": PIPELINE_TAGS.get(head),
    }
    if run is not None:
        # The base is what the weights started from; a teacher that only showed its answers is named in the text.
        if run.start is not None and run.start.on_hub:
            fields |= {"base_model": run.start.name, "base_model_relation": "finetune"}
        if run.data.hub_id is not None:
            fields["datasets"] = [run.data.hub_id]
        if run.measurements:
            fields["model_name"] = repo_id.split("/")[-1] if repo_id else architecture
            fields["eval_results"] = [
                EvalResult(
                    task_type=PIPELINE_TAGS.get(head) or "image-text-classification",
                    dataset_type=run.data.hub_id or run.data.name,
                    dataset_name=run.data.name,
                    dataset_split=one.split,
                    dataset_revision=run.data.revision,
                    metric_type=one.metric,
                    metric_name=one.metric.replace("_", " "),
                    metric_value=round(one.value, _DIGITS),
                )
                for one in run.measurements
            ]
    if checkpoint.adapter is not None:
        fields |= {"base_model": checkpoint.adapter.base, "base_model_relation": "adapter"}
    # huggingface_hub checks the fields and lays model-index out.
    checked: dict[str, Any] = yaml.safe_load(ModelCardData(**fields).to_yaml())
    return checked


def _metric_rows(run: RunRecord | None) -> list[dict[str, Any]]:
    """Measurements as the table shows them: shares in per cent, other values as they are."""
    rows = []
    for one in run.measurements if run else ():
        # CIDEr has no upper end, though most values lie below 1.
        is_share = one.metric != "cider" and all(
            value is None or 0 <= value <= 1 for value in (one.value, one.teacher, one.text_only, one.majority)
        )

        def shown(value: float | None, is_share: bool = is_share) -> str:
            return "" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.3g}"

        rows.append(
            {
                "metric": one.metric.replace("_", " "),
                "split": one.split,
                "rows": "" if one.rows is None else f"{one.rows:,}",
                **{name: shown(getattr(one, name)) for name in ("value", "teacher", "text_only", "majority")},
                "groups": ", ".join(f"{group} {shown(value)}" for group, value in one.groups.items()),
                "source": one.source,
            }
        )
    return rows


def _shape(checkpoint: CheckpointFiles) -> dict[str, Any]:
    """What config.json says of a whole model; an adapter's is its base's."""
    config = checkpoint.config
    text, image = config.get("text_config") or config, config.get("vision_config") or config
    return {
        "layers": _layers(text, image),
        "hidden_size": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "image_size": _size(image["image_size"]),
        "patch_size": image["patch_size"],
        "text_length": text["max_position_embeddings"],
        # transformers leaves its default labels, of which there are two, out of config.json.
        "labels": len(config.get("id2label", ("LABEL_0", "LABEL_1"))),
    }


def _learned(run: RunRecord | None) -> str:
    """What a distilled student was taught, by the weights of its losses where they differ from the trainer's defaults."""
    settings = run.settings if run else {}
    taught = (
        ("soft_label_weight", 1.0, "to give the teacher's answers"),
        ("attention_weight", 1.0, "to look where the teacher looks"),
        ("label_weight", 0.0, "from the labels themselves"),
    )
    learned = [words for name, default, words in taught if settings.get(name, default)]
    if run is not None and run.method == "distillvlm" and _compares_hidden_states(settings):
        learned.insert(-1 if settings.get("label_weight") else len(learned), "to have the teacher's hidden states")
    return " and ".join(learned)


def _compares_hidden_states(settings: Mapping[str, Any]) -> bool:
    """Whether hidden states were compared."""
    return bool(settings.get("hidden_weight", 1.0)) and settings.get("hidden_loss", "nce") != "none"


def _settings(run: RunRecord | None) -> dict[str, str]:
    if run is None:
        return {}
    stated = _NOT_WORTH_NAMING | ({"max_steps"} if run.steps is not None else set())
    return {name: _setting(value) for name, value in sorted(run.settings.items()) if name not in stated}


def _no_better_than_blind(run: RunRecord | None) -> list[str]:
    """Metric and split on which a reader that never sees the image does as well."""
    return [
        f"{one.metric.replace('_', ' ')} on {one.split}"
        for one in (run.measurements if run else ())
        if one.text_only is not None and one.value <= one.text_only
    ]


def _origin(origin: Origin) -> str:
    """A checkpoint that was used, in Markdown; the digest of a folder's weights is cut, run.json has all of it."""
    if origin.on_hub:
        return f"[{origin.name}](https://huggingface.co/{origin.name}), commit `{origin.revision}`"
    return f"{origin.name} (not on the Hub), weights `{origin.revision[:_SHOWN_OF_A_DIGEST]}`"


def _layers(text: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    if text is image:
        return f"{text['num_hidden_layers']} layers"
    return f"{text['num_hidden_layers']} text layers and {image['num_hidden_layers']} image layers"


def _size(image_size: Any) -> tuple[int, int]:
    """Height and width in pixels."""
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e5 else f"{parameters:,}"


def _setting(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


__all__ = ["PAPERS", "PIPELINE_TAGS", "make_card", "write_card"]
