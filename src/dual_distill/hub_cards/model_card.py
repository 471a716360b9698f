"""The model card, from what happened: config.json and the weights' headers say what it is, `run.json` how it came.

The template holds sentences, this file decides which facts they get. What is not known is left out, never guessed. What
lies outside our two markers is a person's, and no push may lose it: the first marker holds the digest of the
hand-written text as it was when we last wrote the card, which tells who changed that text since: the copy beside the
weights, the one on the Hub, or both.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from dual_distill.sealed import write_file

from .architectures import CONFIG, SENTENCE_CONFIG
from .checkpoint_folder import CARD, Checkpoint, collect
from .run_record import Measurement, RunRecord, read_yaml

EVAL_RESULTS = ".eval_results/dual_distill.yaml"
"""The Hub's form of results, of this package's own evaluations."""

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_BEGIN = re.compile(r"<!-- dual_distill card begins(?:, hand-written text: ([0-9a-f]{16}|none))? -->\n?")
_END = "<!-- dual_distill card ends -->"
_VERSION_OF_PEFT = re.compile(r"\s*### Framework versions\s*- PEFT \S+\s*\Z")
_TAGS = ("dual_distill", "vision-language", "distillation", "dual-encoder", "fusion-encoder")
# What the card decides itself; other keys of a README's metadata stay as they are.
_OURS = ("tags", "base_model", "base_model_relation", "pipeline_tag", "library_name", "datasets", "model-index")
# The card says these elsewhere, or they change nothing of what is learned; run.json holds them.
_NOT_WORTH_NAMING = {
    "architecture", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_height",
    "image_width", "patch_size", "max_text_length", "seed", "per_device_eval_batch_size", "logging_steps",
    "logging_strategy", "eval_steps", "eval_strategy", "save_steps", "save_strategy", "save_total_limit",
    "dataloader_num_workers", "image_cache_mb",
}  # fmt: skip
_TAUGHT = {
    "soft_label_weight": "to give the teacher's answers",
    "attention_weight": "to look where the teacher looks",
    "hidden_weight": "to have the teacher's hidden states",
    "interaction_attention_weight": "to look in its interaction layers where the teacher looks",
    "interaction_hidden_weight": "to make of the text in its interaction layers what the teacher makes of it",
    "itm_distillation_weight": "to match images and texts as the teacher does",
    "mlm_distillation_weight": "to fill in words as the teacher does",
    "ranking_weight": "to rank as the teacher ranks",
    "match_weight": "to order anew, by its interaction layers, as the teacher ranks",
    "label_weight": "from the labels themselves",
}
_IN_PER_CENT = re.compile(r"accuracy|recall|precision|f1|score|consistency|share|bleu|rouge")
# What could begin HTML, end a span of code or a cell, or go on in another line.
_HARMFUL = str.maketrans({"<": "&lt;", "`": "'", "|": "\\|", "\n": " ", "\r": " "})
_DIGITS = 4  # of a share: a hundredth of a per cent


class Card(NamedTuple):
    """A README taken apart.

    Attributes:
        metadata: of the block at its top.
        before: hand-written, above our part.
        after: hand-written, below it; all of a README without our part.
        digest: of the hand-written text when we last wrote it; None: we never did.
    """

    metadata: dict[str, Any]
    before: str
    after: str
    digest: str | None

    @property
    def hand_written(self) -> str:
        """Both hand-written parts, as one text."""
        return f"{self.before}\n{self.after}".strip()


def make_card(
    checkpoint: Checkpoint,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    with_code: bool = False,
    metadata: Mapping[str, Any] | None = None,
    on_hub: str | None = None,
) -> str:
    """Write the card of a checkpoint.

    Args:
        checkpoint: what is known; without a record of its run the card holds no numbers of quality.
        repo_id: where it will lie; None: the quick start loads from the folder that it is run in.
        revision: branch that it is pushed to; None: the main one.
        with_code: whether the code lies beside it.
        metadata: further metadata, such as `license`; `tags` are added to the card's own.
        on_hub: the README there, whose hand-written part and further metadata stay, as those of the folder's do.

    Returns:
        The text of README.md.

    Raises:
        ValueError: the README of the folder and that of the Hub have unlike hand-written text, or cannot be read.
    """
    local = parse_card(checkpoint.readme) if checkpoint.readme is not None else None
    if checkpoint.adapter and local and _is_empty_form(local):
        local = None

    # What a person wrote stays: text, further metadata, tags.
    kept = choose(local, parse_card(on_hub, f"{CARD} of {repo_id}") if on_hub is not None else None)
    old = {**(kept.metadata if kept else {}), **{name: value for name, value in (metadata or {}).items() if value}}
    tags = [*_listed((metadata or {}).get("tags")), *_listed(kept and kept.metadata.get("tags"))]
    # Without code, transformers alone cannot load it: the library that can is named.
    library = "peft" if checkpoint.adapter else "transformers" if with_code else "dual_distill"

    # Everything else is told by the files and the record.
    run = checkpoint.run or RunRecord()
    title = run.model_name or (repo_id.split("/")[-1] if repo_id else checkpoint.architecture.name)
    measured = _measured(run)
    weights = run.objective.weights if run.objective else {}
    further = {name: value for name, value in old.items() if name not in _OURS}
    data = ModelCardData(**_own_metadata(checkpoint, run, title, measured, tags), library_name=library, **further)
    told = {
        "run": asdict(checkpoint.run) if checkpoint.run else None,
        "config": checkpoint.config,
        "adapter": checkpoint.adapter,
        "title": title,
        "license": old.get("license"),
        "metrics": [_metric_row(one) for one in measured],
        "settings": _settings(run),
    }
    paper = (run.objective.paper if run.objective else None) or {}
    facts = {
        **vars(checkpoint),
        **_harmless(told | _shape(checkpoint.config)),
        "checkpoint": checkpoint,
        "source": repo_id or ".",
        "revision": revision,
        "with_code": with_code,
        "learned": " and ".join(words for name, words in _TAUGHT.items() if weights.get(name)),
        # The one text of several lines, in a block of code.
        "bibtex": paper.get("bibtex", "").replace("```", ""),
    }
    return render_card(data, _template().render(facts), kept)


@cache
def _template() -> jinja2.Template:
    """Compile the template, once a process: it takes longer than all else of a card."""
    layout: Any = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"), **layout)


def write_card(folder: str | Path, **options: Any) -> Path:
    """Write README.md into the folder of a checkpoint; the hand-written part of one that is there stays.

    Args:
        folder: of the checkpoint, see `collect`.
        **options: `repo_id`, `revision`, `with_code` and `metadata` of `make_card`.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds no checkpoint that may be published.
    """
    file, checkpoint = Path(folder, CARD), collect(folder)
    card, results = make_card(checkpoint, **options), eval_results(checkpoint)
    if results:
        Path(folder, EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_file(Path(folder, EVAL_RESULTS), results)
    else:  # none that an earlier record held
        Path(folder, EVAL_RESULTS).unlink(missing_ok=True)
    write_file(file, card)
    return file


def eval_results(checkpoint: Checkpoint) -> str:
    """Return the results of a checkpoint's run as YAML, as the Hub shows them beside others'; "" without any.

    The Hub keeps results by data set, so only those on one data set of its own are written: value, metric and split.
    """
    run = checkpoint.run or RunRecord()
    if len(run.data.hub_ids) != 1:
        return ""
    entries = [
        EvalResultEntry(
            dataset_id=run.data.hub_ids[0],
            task_id=f"{one.split}_{one.metric}",
            value=round(one.value, _DIGITS),
            dataset_revision=run.data.revision,
            notes=f"{_metric_name(one)}, {one.split}" + (f", {one.rows:,} rows" if one.rows is not None else ""),
        )
        for one in _measured(run)
        if one.task is None
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else ""


def _measured(run: RunRecord) -> list[Measurement]:
    """Measurements worth showing: losses where nothing else was measured on the same rows."""
    better = {(one.split, one.task) for one in run.measurements if not one.metric.endswith("loss")}
    return [one for one in run.measurements if (one.split, one.task) not in better or not one.metric.endswith("loss")]


def parse_card(readme: str, name: str = CARD) -> Card:
    r"""Split a README into metadata and hand-written parts; our own part, which is written anew, is dropped.

    Args:
        readme: its text.
        name: what to call it in messages.

    Raises:
        ValueError: the metadata is no YAML mapping, or one of the two markers is missing.

    Example:
        >>> parse_card("---\nlicense: mit\n---\n# By hand\n")
        Card(metadata={'license': 'mit'}, before='', after='# By hand', digest=None)
    """
    # Metadata, as huggingface_hub reads them.
    text, metadata = readme.replace("\r\n", "\n"), {}
    if text.lstrip().startswith("---\n"):
        try:
            if block := REGEX_YAML_BLOCK.search(text):
                read_yaml(block.group(2))
            card = ModelCard(text, ignore_metadata_errors=True)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            reason = f"is no mapping in YAML ({' '.join(str(error).split())}); write `key: value` lines, or delete it"
            raise ValueError(f"the metadata at the top of {name} {reason}.") from error
        text, metadata = card.text, card.data.to_dict()

    # What stands outside our markers; without markers everything does.
    begin, ends = _BEGIN.search(text), text.count(_END)
    if begin is None and not ends:
        return Card(metadata, "", text.strip(), None)
    if begin is None or ends != 1 or len(_BEGIN.findall(text)) != 1 or text.index(_END) < begin.end():
        way_out = f"put back '<!-- dual_distill card begins -->' and '{_END}', or delete all between them, and them too"
        raise ValueError(f"{name} does not have our two markers once each and in order; {way_out}.")
    after = text[text.index(_END) + len(_END) :]
    return Card(metadata, text[: begin.start()].strip(), after.strip(), begin.group(1) or "none")


def choose(local: Card | None, remote: Card | None) -> Card | None:
    """Choose whose hand-written part goes on: the one that was changed since we last wrote the card.

    Args:
        local: the README beside the weights.
        remote: the README on the Hub.

    Raises:
        ValueError: both were changed, differently.

    Example:
        >>> online = parse_card("<!-- dual_distill card begins -->ours<!-- dual_distill card ends -->")
        >>> choose(parse_card("mine"), online).after
        'mine'
    """
    if local is None or remote is None or local.hand_written == remote.hand_written:
        return local or remote

    # Who changed the text since we last wrote it: nobody here, nobody there, or both.
    if not local.hand_written and local.digest in (None, "none"):
        return remote
    if _digest_of(remote.hand_written) == (remote.digest or "none"):
        return local  # nobody touched the Hub's since we wrote it
    if _digest_of(local.hand_written) == local.digest:
        return remote
    way_out = "copy what should stay into the local one, make the Hub's part equal or empty, and push again"
    raise ValueError(f"the README here and the one on the Hub both have hand-written text, and it differs; {way_out}.")


def render_card(data: ModelCardData, generated: str, kept: Card | None) -> str:
    """Return a README: metadata, the hand-written text above, our part between its markers, the text below."""
    digest = _digest_of(kept.hand_written if kept else "")
    ours = f"<!-- dual_distill card begins, hand-written text: {digest} -->\n{generated.strip()}\n{_END}"
    parts = [f"---\n{data.to_yaml()}\n---", kept.before if kept else "", ours, kept.after if kept else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def _digest_of(text: str) -> str:
    """What the marker holds for a hand-written text: 16 hexadecimal digits, "none" for no text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else "none"


def _is_empty_form(card: Card) -> bool:
    """Whether nobody wrote anything into the form that peft saves for a card."""
    form = ModelCard.from_template(ModelCardData()).text.strip()
    return card.digest is None and _VERSION_OF_PEFT.sub("", card.after).strip() == form


def _own_metadata(
    checkpoint: Checkpoint, run: RunRecord, title: str, measured: Sequence[Measurement], tags: Sequence[str]
) -> dict[str, Any]:
    """The fields of the metadata that the card decides, as `ModelCardData` takes them; None: left out."""
    architecture, adapter, data = checkpoint.architecture, checkpoint.adapter, run.data
    own_tags = [*_TAGS[:2], "dual-encoder" if architecture.family == "DualEncoder" else "fusion-encoder"]
    own_tags += ["distillation"] if run.objective else []
    own_tags += ["sentence-transformers"] if SENTENCE_CONFIG in checkpoint.files else []
    own_tags += [adapter["peft_type"].lower()] if adapter else []
    # Told by the caller, or what follows from the head.
    tasks: Sequence[str | None] = run.tasks or [architecture.pipeline_tag]

    # The base is what the weights started from; a teacher that only showed its answers is named in the text.
    start = run.start.name if run.start and run.start.on_hub else None
    base = adapter["base_model_name_or_path"] if adapter else run.finetuned_from or start
    found = {
        "tags": [*own_tags, *(tag for tag in tags if tag not in _TAGS)],
        "pipeline_tag": tasks[0],
        "base_model": base,
        "base_model_relation": ("adapter" if adapter else "finetune") if base else None,
        "datasets": data.hub_ids or None,
    }

    # The Hub takes no result without its data: the run's own, which stand here.
    data_name, own = data.name or "".join(data.hub_ids[:1]), [one for one in measured if one.task is None]
    if not own or not data_name:
        return found
    results = [
        EvalResult(
            task_type=task or "image-text-classification",
            dataset_type=data.hub_ids[0] if data.hub_ids else data_name,
            dataset_name=data_name,
            dataset_config=data.arguments[0] if data.arguments else None,
            dataset_split=one.split,
            dataset_revision=data.revision,
            metric_type=one.metric,
            metric_name=_metric_name(one),
            metric_value=round(one.value, _DIGITS),
        )
        for task in tasks
        for one in own
    ]
    return {**found, "model_name": title, "eval_results": results}


def _metric_name(one: Measurement) -> str:
    return one.metric.replace("_", " ") + (f", edition {one.edition}" if one.edition else "")


def _metric_row(one: Measurement) -> dict[str, Any]:
    """A measurement as the table shows it: shares in per cent, other values as they are."""
    values = (one.value, one.teacher, one.text_only, one.majority)
    is_share = bool(_IN_PER_CENT.search(one.metric)) and all(value is None or 0 <= value <= 1 for value in values)

    def shown(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.3g}"

    return {
        "metric": _metric_name(one),
        "split": one.split if one.task is None else f"{one.split} of {one.task}",
        "rows": "" if one.rows is None else f"{one.rows:,}",
        "is_above_question_only": one.text_only is None or one.value > one.text_only,
        **{name: shown(getattr(one, name)) for name in ("value", "teacher", "text_only", "majority")},
        "groups": ", ".join(f"{group} {shown(value)}" for group, value in one.groups.items()),
        "source": one.source,
    }


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Both towers, and what of them stands in an example: code, into which nothing but whole numbers may come."""
    num_images = config.get("num_images", 1)
    if type(num_images) is not int:
        raise ValueError(f"{CONFIG} has num_images {num_images!r}; it must be a whole number.")
    text, image = (config.get(f"{tower}_config") or config for tower in ("text", "vision"))
    size = image.get("image_size")
    sides = size if isinstance(size, list) else [size, size]
    is_known = len(sides) == 2 and all(type(side) is int for side in sides)

    # Towers of others are told by their names: each has its own shape, which it need not say in these words.
    shapes = [[tower.get(name) for name in ("hidden_size", "num_attention_heads")] for tower in (text, image)]
    are_alike = shapes[0] == shapes[1] and all(shapes[0]) and "num_hidden_layers" in text.keys() & image.keys()
    towers = {"text": text, "image": image, "are_alike": are_alike}
    return {**towers, "num_images": num_images, "image_size": sides if is_known else None}


def _settings(run: RunRecord) -> dict[str, str]:
    """Settings that are worth naming, for a line of a table."""
    stated = _NOT_WORTH_NAMING | ({"max_steps"} if run.steps is not None else set())
    return {name: str(value) for name, value in sorted(run.settings.items()) if name not in stated}


def _harmless(value: Any) -> Any:
    """What a record, a configuration or a README says, without HTML or links of its own: the files may be another's."""
    if isinstance(value, str):
        return value.translate(_HARMFUL).replace("](", "] (")
    if isinstance(value, Mapping):
        return {_harmless(name): _harmless(one) for name, one in value.items()}
    return [_harmless(one) for one in value] if isinstance(value, list | tuple) else value


def _listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
