r"""Evaluate a checkpoint by what its task is judged by, and by how well one can do without it.

Accuracy, overall and by group, the official VQA score, NLVR2's consistency; beside it what the question without the
image gives. Images with captions: recall@1, @5, @10 and median rank both ways, by itself and re-ranked by a fusion
encoder, and the seconds of each. Captions that are written: CIDEr-D and BLEU-4.

Examples:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --json
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split validation
  dual-distill evaluate path/to/vilt-nlvr2 --task nlvr2 --data path/to/nlvr2 --no-baselines
  dual-distill evaluate runs/custom/distilled --task custom --data shop.csv --image-column photo --split validation
  dual-distill evaluate runs/retrieval/distilled --task coco_retrieval --data path/to/coco \
      --rerank runs/retrieval/teacher --rerank-top 16
  dual-distill evaluate runs/coco_captions/distilled --task coco_captioning --data coco --regions regions/light \
      --num-beams 5 --output-dir runs/coco_captions/distilled

The answers to VQA v2's test questions, for EvalAI:
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split test --submission answers.json \
      --data-options '{"test_questions": "path/to/vqa_v2/v2_OpenEnded_mscoco_test2015_questions.json"}'
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from transformers import HfArgumentParser, PreTrainedConfig

from dual_distill import trainer
from dual_distill.data import TASKS, CaptioningCollator, DistillationCollator, Task, identify_data
from dual_distill.evaluation import VQAEdition, report_captions, write_captions, write_submission
from dual_distill.hub_cards import origin_of
from dual_distill.inference import evaluate_retrieval
from dual_distill.regions import RegionStore
from dual_distill.runs import HEADS, DataArguments, ReadingArguments, head_of, load_data
from dual_distill.sealed import write_file
from dual_distill.teachers import load_config, load_model

from .card import EVALUATION
from .options import TOP_K, add_options, aligned, option, refuse_options

OF_CAPTIONS = ("num_beams", "max_new_tokens")
_OF_ANSWERS = ("edition", "no_baselines")
_OF_RANKING = ("rerank", "rerank_with_layers", "rerank_top", "fold_images")
_NUM_TAGS = 20
_WAYS = {"dual": "dual encoder alone", "reranked": "top {} re-ranked"}
_DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_TIMED = {
    "dual": "dual encoder, all pairs",
    "rerank": "re-ranking",
    "fusion": "fusion encoder, all pairs",
    "rerank_all": "layers, all pairs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, its task as a recipe says it, and what is measured."""
    add_reading(parser)
    add_options(parser, "model", "--revision", "--device", "--batch-size")
    parser.set_defaults(batch_size=128)
    option(parser, "--split", "NAME", "train, validation or test (%(default)s)", default="test")
    editions = {"choices": get_args(VQAEdition)}
    option(parser, "--edition", "YEAR", "of the official VQA score: 2021, today's (default), or 2017", **editions)
    option(parser, "--max-rows", "N", "evaluate the first N rows (default: all)")
    parser.add_argument("--no-baselines", action="store_true", help="without the baselines, which read all of train")
    option(parser, "--predictions", "PATH", "also write each row, its predictions and whether it is right (JSON lines)")
    add_options(parser, "--top-k")
    option(
        parser, "--submission", "PATH", "also write the file that the server takes (VQA v2, GQA, NLVR, COCO's captions)"
    )
    option(parser, "--output-dir", "PATH", f"also write the results to {EVALUATION} in this folder")

    group = parser.add_argument_group("images with captions (coco_retrieval)")
    option(group, "--rerank", "MODEL", "fusion encoder that orders the best candidates anew")
    layers = "let the model's own interaction layers order them anew, without a second model"
    group.add_argument("--rerank-with-layers", action="store_true", help=layers)
    option(group, "--rerank-top", "N", "candidates of each query that are ordered anew (default: 16)")
    option(group, "--fold-images", "N", "also the mean over parts of N images; 0: not (default: 1000, as COCO's 1K)")
    add_caption_options(parser)


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of regions and of captioning, to `predict` too."""
    group = parser.add_argument_group("models that read regions, and models that write captions")
    option(group, "--regions", "PATH", "region store of the images (`dual-distill regions`)")
    option(group, "--num-tags", "N", f"most object tags a text (default: {_NUM_TAGS}, 0 where none were learnt)")
    option(group, "--num-beams", "N", "beams; 5 in the papers (default: the model's, 1: greedy)")
    option(group, "--max-new-tokens", "N", "longest caption (default: the model's, 20)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate by what the task's head writes, and note the result where it was asked for."""
    if options.output_dir is not None and options.output_dir.suffix == ".json":
        raise ValueError(f"--output-dir is {str(options.output_dir)!r}; give a folder, which gets {EVALUATION}.")
    # A custom dataset has labels.
    task = TASKS.get(options.task)
    writes = "answers" if task is None else HEADS[task.head].writes
    if task is not None and writes == "ranking" and task.image_id_column is None:
        raise ValueError(f"task {task.name!r} is a stream to train on alone; evaluate on another, as coco_retrieval.")
    evaluate, unfit = {
        "answers": (_evaluate_answers, (*_OF_RANKING, *OF_CAPTIONS)),
        "ranking": (_evaluate_ranking, (*OF_CAPTIONS, *_OF_ANSWERS, "submission", "regions", "num_tags")),
        "captions": (_evaluate_captions, (*_OF_RANKING, *_OF_ANSWERS, "top_k")),
    }[str(writes)]
    refuse_options(options, unfit, f"is given, but task {options.task!r} is evaluated by its {writes}")
    if options.predictions is None:
        refuse_options(options, ["top_k"], "is given, but not --predictions, of which it says how many")
    task, splits, rows = _load_rows(options)
    found = evaluate(options, task, splits, rows)

    result = {"model": options.model, "weights": origin_of(options.model, options.revision).revision}
    result |= {"task": options.task, "data": identify_data(splits, task), "split": options.split}
    result |= {"split_data": identify_data(splits, task, options.split), **found}
    if options.output_dir is not None and "rows" in result:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        write_file(options.output_dir / EVALUATION, json.dumps(result, indent=2) + "\n")
    return result


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ReadingArguments`."""
    reading = HfArgumentParser(ReadingArguments, add_help=False)
    for action in reading._actions:
        # One spelling, as everywhere here; words are read with dashes.
        action.option_strings = [name for name in action.option_strings if "_" not in name]
        action.metavar = {"data": "PATH", "data_options": "JSON", "skip_bad": "true|false"}.get(action.dest, "NAME")
        action.required = action.dest == "task"
    parser._add_container_actions(reading)


def table(result: dict[str, Any]) -> str:
    """Lay a result out for reading."""
    if "submission" in result:
        return f"no labels in split {result['split']}; answers in {result['submission']}"
    lay_out = _ranking_table if "whole" in result else _captions_table if "cider" in result else _answers_table
    return f"{result['model']} on {result['task']}, {result['split']}{lay_out(result)}"


def _load_rows(options: argparse.Namespace) -> tuple[Task, Any, Any]:
    """Read the data; its task, its splits, and the rows that are evaluated.

    Raises:
        ValueError: the data cannot be read, or has no such split or no rows in it.
    """
    reading = {field.name: getattr(options, field.name) for field in fields(ReadingArguments)}
    label_names, head = None, None
    if options.task == "custom":  # what is learned with which labels only the checkpoint knows
        config = load_config(options.model, options.revision)
        label_names, spec = [config.id2label[index] for index in range(config.num_labels)], head_of(config)
        head = None if spec is None else spec.name

    task, data = load_data(DataArguments(**reading, head=head), label_names)
    if options.split not in data:
        raise ValueError(f"task {options.task!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    if not len(rows):
        raise ValueError(f"split {options.split!r} has no rows to evaluate (--max-rows: {options.max_rows}).")
    return task, data, rows


def _evaluate_answers(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> dict[str, Any]:
    """Answer the rows, and hold the answers against their labels; no report where they have none."""
    # What cannot be answered or written is said before minutes of answering.
    keys = task.submission_keys or ("question_id", "answer")
    id_column = keys[0] if keys[0] in rows.column_names else "question_id"
    if options.submission and id_column not in rows.column_names:
        raise ValueError(f"--submission needs a column {id_column}, but split {options.split!r} has none.")
    has_labels = task.label_column in rows.column_names and rows[0][task.label_column] is not None
    if not has_labels and not options.submission and not options.predictions:
        way_out = "give --submission PATH or --predictions PATH"
        raise ValueError(f"split {options.split!r} has no labels to hold answers against; {way_out}.")
    if not has_labels:
        refuse_options(options, ["output_dir", "no_baselines"], f"is given, but split {options.split!r} has no labels")
    if not (task.given_answers_column or task.answers_column):
        why = f"is of the VQA score, but task {task.name!r} has one right answer a row"
        refuse_options(options, ["edition"], why)
    edition: VQAEdition = options.edition or "2021"
    top_k = TOP_K if options.top_k is None else options.top_k

    model, processor = load_model(options.model, options.revision, HEADS[task.head].classes)
    label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    regions = region_options(options, model.config)
    longest = min(_text_tokens(model.config, regions), processor.tokenizer.model_max_length)
    collator = DistillationCollator(processor, task, label_names, max_text_length=longest, image_cache_mb=0, **regions)
    ranked = trainer.rank_answers(model.to(options.device), rows, collator, options.batch_size, top_k=top_k)
    answers = [best[0]["answer"] for best in ranked]

    if options.submission:
        ids = list(rows[id_column])
        if "permutation" in rows.column_names:  # NLVR's script knows the files of its images
            files = zip(ids, rows["permutation"], strict=True)
            split = {"validation": "train"}.get(options.split, options.split)
            ids = [f"{split}-{identifier}-{number}.png" for identifier, number in files]
        write_submission(options.submission, ids, answers, keys)
    if options.predictions:
        _write_lines(options.predictions, trainer.prediction_records(ranked, rows, task, edition))
    if not has_labels:
        return {"submission": str(options.submission or options.predictions)}
    train = None if options.no_baselines else data.get("train")
    return asdict(trainer.report_answers(answers, rows, task, train, edition=edition))


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _answers_table(found: dict[str, Any]) -> str:
    """Shares in per cent, by group and beside those of the baselines."""
    score = f"VQA score (edition {found['vqa_score_edition']}), {found['rows']} rows"
    shares = [(score, found["vqa_score"]), *_indented(found["vqa_score_by_group"])]
    shares += [(f"accuracy, {found['rows']} rows", found["accuracy"]), *_indented(found["accuracy_by_group"])]
    shares += [("consistency", found["consistency"]), ("most frequent answer", found["majority"])]
    shares += [(f"question-only baseline ({found['text_only_method']})", found["text_only"])]
    shown = [(name, share) for name, share in shares if share is not None]
    width = max(len(name) for name, _ in shown)
    return "\n".join(["", *(f"{name:<{width}}  {100 * share:5.1f} %" for name, share in shown)])


def _indented(groups: dict[str, float]) -> list[tuple[str, float]]:
    return [(f"  {group}", share) for group, share in groups.items()]


def _evaluate_ranking(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> dict[str, Any]:
    """Search the rows both ways.

    Raises:
        ValueError: an option does not fit, or the models cannot be read.
    """
    head = HEADS[task.head]
    if options.rerank is None and not options.rerank_with_layers and options.rerank_top is not None:
        raise ValueError("--rerank-top needs what orders candidates anew; give --rerank MODEL or --rerank-with-layers.")
    model, processor = load_model(options.model, options.revision, head.classes)
    if isinstance(model, head.fusion_class):
        wrong = f"{options.model!r} is a fusion encoder, which reads each pair"
        raise ValueError(f"{wrong}; give the dual encoder that finds the candidates, and this one by --rerank.")

    # None stands for an option that was not given: `evaluate_retrieval` has the defaults.
    again: Any = (None, None)
    if options.rerank is not None:
        again = load_model(options.rerank, model_class=head.classes)
        again.model.to(options.device)
    settings = {
        name: getattr(options, name) for name in ("rerank_with_layers", "rerank_top", "fold_images", "batch_size")
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if options.fold_images == 0:
        settings["fold_images"] = None
    settings["nearest"] = TOP_K if options.top_k is None else options.top_k
    searched = (rows, task, model.to(options.device), processor)
    evaluated = evaluate_retrieval(*searched, *again, **settings, show_progress=True)
    if options.predictions:
        ranked = [[{"answer": image_id} for image_id in best] for best in evaluated.nearest]
        named = replace(task, label_column=task.image_id_column)  # a caption is answered by an image
        _write_lines(options.predictions, trainer.prediction_records(ranked, rows, named))
    report = evaluated.to_dict()
    return {**({} if options.rerank is None else {"rerank": options.rerank}), "rows": report["images"], **report}


def _ranking_table(found: dict[str, Any]) -> str:
    """Recalls in per cent, both ways, and what they cost."""
    # Everything, and the mean over parts as published tables have it.
    parts = {"": found["whole"]}
    if found["mean_of_folds"]:
        parts[f"mean over {found['folds']} parts of {found['fold_images']:,} images"] = found["mean_of_folds"]

    lines = [f": {found['images']:,} images, {found['captions']:,} captions"]
    for heading, recalls in parts.items():
        lines += ["", heading] if heading else []
        for direction, words in _DIRECTIONS.items():
            lines.append(f"{words:<24}   R@1    R@5   R@10   median rank")
            for way, directions in recalls.items():
                name, numbers = _WAYS[way].format(found["rerank_top"]), directions[direction]
                shares = "  ".join(f"{100 * numbers[f'recall@{k}']:5.1f}" for k in (1, 5, 10))
                lines.append(f"  {name:<22} {shares}   {numbers['median_rank']:11,.1f}")

    lines.append("")
    for time in found["times"]:
        how = "measured" if time["measured"] else "estimated from measured pairs per second"
        lines.append(f"{_TIMED[time['way']]:<26} {time['seconds']:12,.2f} s  {time['pairs']:>13,} pairs, {how}")
    return "\n".join(lines)


def _evaluate_captions(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> dict[str, Any]:
    """Describe every image of the rows, and score what was written."""
    model, processor = load_model(options.model, options.revision, HEADS[task.head].classes)
    config: Any = model.config

    # Tags stand behind the longest caption.
    regions = region_options(options, config)
    longest = min(_text_tokens(config, regions), config.max_caption_tokens)
    collator = CaptioningCollator(processor, task, max_text_length=longest, image_cache_mb=0, **regions)
    told = writing_options(options)
    captions = trainer.describe_images(model.to(options.device), rows, collator, options.batch_size, **told)
    if options.submission:
        write_captions(options.submission, list(captions), list(captions.values()))
    references = trainer.captions_by_image(rows, task)
    if options.predictions:
        pairs = ((image_id, text, references[image_id]) for image_id, text in captions.items())
        names = (str(task.image_id_column), "prediction", "references")
        _write_lines(options.predictions, (dict(zip(names, pair, strict=True)) for pair in pairs))
    report = asdict(report_captions(captions, references))
    return {"rows": report["images"], **report}


def _captions_table(found: dict[str, Any]) -> str:
    """CIDEr as it is, BLEU in per cent."""
    lines = {
        f"CIDEr, {found['images']:,} images, {found['captions']:,} captions": f"{found['cider']:8.4f}",
        "BLEU-4": f"{100 * found['bleu_4']:8.2f} %",
        "words a caption": f"{found['mean_words']:8.2f}",
    }
    return "\n" + aligned(lines)


def writing_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `generate` is told; what is not given is as the model was saved to write."""
    told = {name: value for name in OF_CAPTIONS if (value := getattr(options, name)) is not None}
    for name, value in told.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, but must be at least 1.")
    return told


def region_options(options: argparse.Namespace, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keyword arguments of a collator for a model that reads regions; none for one that reads pixels.

    Raises:
        ValueError: such a model without a store, a store of other boxes or features than it reads, or one for another
            model.
    """
    if getattr(config, "visual_inputs", "patches") != "regions":
        refuse_options(options, ["regions", "num_tags"], f"is given, but {options.model!r} reads pixels")
        return {}
    if options.regions is None:
        made = f"boxes: {config.region_boxes_id}; features: {config.region_features_id}"
        raise ValueError(f"{options.model!r} reads regions ({made}); give --regions PATH.")

    store = RegionStore(options.regions)
    for what in ("boxes", "features"):
        trained, given = getattr(config, f"region_{what}_id"), getattr(store, f"{what}_id")
        if trained not in (None, given):
            held = f"the store {str(options.regions)!r} holds {what} of {given}; give a store made the same way"
            raise ValueError(f"{options.model!r} was trained on {what} of {trained}, but {held}.")

    # Tags have the positions behind the longest text; a model without such positions has learnt none.
    room = max(config.max_position_embeddings - config.max_caption_tokens, 0)
    num_tags = (_NUM_TAGS if room else 0) if options.num_tags is None else options.num_tags
    return {"regions": store, "num_tags": num_tags, "max_tag_length": room}


def _text_tokens(config: PreTrainedConfig, regions: dict[str, Any]) -> int:
    """Return the longest text in tokens, beside which tags have their positions."""
    positions: int = config.max_position_embeddings
    return positions - regions["max_tag_length"] if regions.get("num_tags") else positions
