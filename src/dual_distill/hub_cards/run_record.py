"""What a run did, as `run.json` beside the weights: the only place from which a card takes numbers.

Written by whoever trained (`write_run`), extended by evaluations (`add_evaluation`), read by card and push
(`read_run`). A number that does not say where it comes from is refused here, so that no card can hold one.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import snapshot_download

from .hub_names import split_revision

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"  # what `dual-distill train` writes
FORMAT = 1
Method = Literal["labels", "dide", "distillvlm"]

_PACKAGES = ("dual-distill", "torch", "transformers", "datasets")
# Where things lie on one machine, and what the Hub client is told: no part of what was done.
_NOT_SETTINGS = {"data", "init_from", "init_revision", "output_dir", "run_name", "teacher", "teacher_revision"}
_HUB_PREFIXES = ("hub_", "push_to_hub", "logging_dir", "report_to", "disable_tqdm", "resume_from")


@dataclass(frozen=True)
class Origin:
    """A checkpoint that a run used.

    Attributes:
        name: `owner/name` on the Hub, or the last part of a folder's path.
        revision: commit on the Hub; of a folder, "sha256:" and the digest of its weights.
        on_hub: whether `name` and `revision` are the Hub's.
    """

    name: str
    revision: str
    on_hub: bool


@dataclass(frozen=True)
class DataOrigin:
    """The data that a run learned from.

    Attributes:
        name: what it is called.
        rows: split -> number of rows.
        hub_id: `owner/name` when it lies on the Hub.
        revision: commit or release of the data; None where it has none (generated data follows from `settings`).
    """

    name: str
    rows: dict[str, int] = field(default_factory=dict)
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One number of quality, with what stands beside it, all on the same rows.

    Attributes:
        metric: its name, such as "accuracy".
        value: of this model.
        split: the rows it was measured on.
        source: command or file that gave it.
        rows: how many; None: not noted.
        teacher: of the teacher.
        text_only: of a reader that never sees the image.
        majority: of the most frequent training answer.
        groups: group -> value.
    """

    metric: str
    value: float
    split: str
    source: str
    rows: int | None = None
    teacher: float | None = None
    text_only: float | None = None
    majority: float | None = None
    groups: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one image-text pair.

    Attributes:
        model_ms: of this model, nothing stored.
        teacher_ms: of the teacher on the same pairs.
        stored_images_ms: of this model when the images were encoded before.
        device: what it ran on, by name.
        source: command or file that gave it.
    """

    model_ms: float
    teacher_ms: float
    stored_images_ms: float | None
    device: str
    source: str


@dataclass(frozen=True)
class RunRecord:
    """Everything about a run that a card may say.

    Attributes:
        method: "labels" (hard labels alone), or distilled from a fusion encoder: "dide" (a dual encoder) or
            "distillvlm" (a smaller fusion encoder).
        data: what it learned from.
        teacher: the frozen teacher; None without one.
        start: the checkpoint whose weights it started from; None: random weights.
        settings: fields of the recipe that differ from their defaults, see `differing_fields`.
        seed: of the run.
        steps: optimizer steps.
        train_seconds: seconds of training.
        device: what it ran on, by name.
        command: the command line, without paths of the machine.
        measurements: quality.
        speed: against the teacher.
        versions: package -> version.

    Raises:
        ValueError: a number has no source or is not finite, a checkpoint of the Hub has no commit, or the method is
        unknown.

    Example:
        >>> RunRecord("labels", DataOrigin("scenes"), measurements=(Measurement("accuracy", 0.9, "test", source=""),))
        Traceback (most recent call last):
        ValueError: accuracy on test is 0.9 without a source; say which command or file gave it (source=), or leave it
        out.
    """

    method: Method
    data: DataOrigin
    teacher: Origin | None = None
    start: Origin | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    steps: int | None = None
    train_seconds: float | None = None
    device: str | None = None
    command: str | None = None
    measurements: tuple[Measurement, ...] = ()
    speed: Speed | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what a card could not answer for."""
        if self.method not in get_args(Method):
            raise ValueError(f"the method of a run is {self.method!r}; give one of {', '.join(get_args(Method))}.")
        for one in self.measurements:
            name = f"{one.metric} on {one.split}"
            if not one.split or not one.source:
                missing = "source" if one.split else "split"
                raise ValueError(
                    f"{name} is {one.value} without a {missing}; say which command or file gave it (source=), or "
                    f"leave it out."
                    if missing == "source"
                    else f"{one.metric} is {one.value} without a split; say which rows it was measured on (split=)."
                )
            numbers = (one.value, one.teacher, one.text_only, one.majority, *one.groups.values())
            for number in numbers:
                if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
                    raise ValueError(f"{name} holds {number!r}; give finite numbers, or leave the measurement out.")
        if self.speed is not None and not (self.speed.source and self.speed.device):
            raise ValueError(
                "the speed has no source or no device; say which command gave it and on what, or leave it out."
            )
        for role, origin in (("teacher", self.teacher), ("start", self.start)):
            if origin is not None and not origin.revision:
                raise ValueError(f"the {role} {origin.name!r} has no revision; `origin_of` finds it.")

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON takes it; what was not noted is left out."""
        record = {name: value for name, value in asdict(self).items() if value not in (None, {}, (), [])}
        record["measurements"] = [
            {name: value for name, value in one.items() if value not in (None, {})}
            for one in record.get("measurements", ())
        ]
        return {"format": FORMAT, **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], source: str = RUN_FILE) -> "RunRecord":
        """Read what `to_dict` gave.

        Args:
            record: the mapping.
            source: what to call it in messages.

        Raises:
            ValueError: it is of a newer format, or a field is missing or unknown.
        """
        values = dict(record)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ValueError(
                f"{source} has format {found!r}, this version of dual_distill reads {FORMAT}; update the package, or "
                f"delete "
                "the file and let the run write it again."
            )
        try:
            values["data"] = DataOrigin(**values["data"])
            for role in ("teacher", "start"):
                if values.get(role) is not None:
                    values[role] = Origin(**values[role])
            values["measurements"] = tuple(Measurement(**one) for one in values.get("measurements", ()))
            if values.get("speed") is not None:
                values["speed"] = Speed(**values["speed"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source} is no record of a run ({error}); let the run write it again.") from error


def write_run(folder: str | Path, record: RunRecord) -> Path:
    """Write `run.json` into a checkpoint's folder; return the file."""
    file = Path(folder, RUN_FILE)
    file.write_text(json.dumps(record.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def read_run(folder: str | Path) -> RunRecord | None:
    """Read the record of a checkpoint's folder: `run.json`, else the `results.json` of `dual-distill train`, else None.

    Raises:
        ValueError: the file is no JSON, no such record, or of a newer format.
    """
    folder = Path(folder)
    if (folder / RUN_FILE).is_file():
        return RunRecord.from_dict(read_json(folder / RUN_FILE))
    if (folder / RESULTS_FILE).is_file():
        return _from_results(read_json(folder / RESULTS_FILE))
    return None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; refuse anything else by the file's name."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} is no valid JSON ({error}); write or fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds a {type(content).__name__}; an object was expected.")
    return content


def _from_results(results: Mapping[str, Any]) -> RunRecord:
    if "task" not in results:
        raise ValueError(
            f"{RESULTS_FILE} names no task, so `dual-distill train` did not write it; delete it or train again."
        )
    distilled = any(name in results for name in ("eval_attention_loss", "eval_soft_label_loss"))
    measurements = tuple(
        Measurement(metric, results[f"eval_{metric}"], "validation", source=f"{RESULTS_FILE}, dual-distill train")
        for metric in ("accuracy", "soft_accuracy")
        if f"eval_{metric}" in results
    )
    return RunRecord(
        method="distillvlm" if "eval_hidden_loss" in results else "dide" if distilled else "labels",
        data=DataOrigin(str(results["task"])),
        seed=results.get("seed"),
        steps=results.get("steps"),
        train_seconds=results.get("train_runtime"),
        measurements=measurements,
    )


def add_evaluation(
    record: RunRecord, evaluation: Mapping[str, Any], source: str, teacher: Mapping[str, Any] | None = None
) -> RunRecord:
    """Add what `dual-distill evaluate --output FILE` wrote; an earlier number of the same metric and split gives way.

    Args:
        record: the run.
        evaluation: of this model.
        source: the command or file that it comes from.
        teacher: the same of the teacher, on the same rows.

    Raises:
        ValueError: the evaluation lacks task, split or rows, or the two are of different rows.

    Example:
        >>> run = RunRecord("labels", DataOrigin("scenes"))
        >>> found = {"task": "scenes", "split": "test", "rows": 30, "accuracy": 0.5, "text_only": 0.4}
        >>> [(m.metric, m.value, m.text_only) for m in add_evaluation(run, found, "dual-distill evaluate").measurements]
        [('accuracy', 0.5, 0.4)]
    """
    for name in ("task", "split", "rows"):
        if name not in evaluation:
            raise ValueError(f"{source} has no {name!r}; give the file that `dual-distill evaluate --output` wrote.")
        if teacher is not None and teacher.get(name) != evaluation[name]:
            raise ValueError(
                f"the teacher was evaluated with {name} {teacher.get(name)!r}, the model with {evaluation[name]!r}; "
                f"evaluate "
                "both on the same rows."
            )
    main = next((name for name in ("vqa_score", "cider") if evaluation.get(name) is not None), "accuracy")
    added = []
    for metric in (main, "consistency", "bleu_4"):
        if evaluation.get(metric) is None:
            continue
        beside = {name: evaluation.get(name) for name in ("text_only", "majority")} if metric == main else {}
        added.append(
            Measurement(
                metric,
                evaluation[metric],
                evaluation["split"],
                source,
                rows=evaluation["rows"],
                teacher=None if teacher is None else teacher.get(metric),
                groups=dict(evaluation.get(f"{metric}_by_group") or {}),
                **beside,
            )
        )
    replaced = {(one.metric, one.split) for one in added}
    kept = [one for one in record.measurements if (one.metric, one.split) not in replaced]
    return replace(record, measurements=(*kept, *added))


def origin_of(name_or_path: str | Path, revision: str | None = None) -> Origin:
    """Say which checkpoint a run used: the commit of a Hub repository loaded before, or the digest of a folder's
    weights.

    Args:
        name_or_path: as it was loaded from, `owner/name@revision` too.
        revision: branch, tag or commit that was asked for.

    Raises:
        ValueError: the folder has no safetensors weights, or the Hub repository is not in the local cache.
    """
    name, revision = split_revision(name_or_path, revision)
    folder = Path(name)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise ValueError(f"{name!r} has no safetensors weights to know it by; give the folder of a checkpoint.")
        digest = hashlib.sha256()
        for file in weights:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return Origin(folder.resolve().name, f"sha256:{digest.hexdigest()}", on_hub=False)
    try:
        # One file, which everyone loads: a snapshot without its README, say, counts as incomplete.
        snapshot = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns="config.json")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no folder and was not loaded from the Hub on this machine, so its commit is not known; load "
            f"it first."
        ) from error
    return Origin(name, Path(snapshot).name, on_hub=True)  # the cache names snapshots by commit


def differing_fields(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """Return the fields of dataclasses that differ from those of default instances; paths and Hub settings are left
    out.

    Args:
        pairs: `(arguments, default arguments)` of one class each.

    Example:
        >>> differing_fields((Origin("a", "b", on_hub=True), Origin("a", "c", on_hub=True)))
        {'revision': 'b'}
    """
    found: dict[str, Any] = {}
    for arguments, defaults in pairs:
        if not is_dataclass(arguments):
            raise ValueError(f"{type(arguments).__name__} is no dataclass; give arguments and their defaults.")
        for one in fields(arguments):
            value = getattr(arguments, one.name)
            if one.name in _NOT_SETTINGS or one.name.startswith(_HUB_PREFIXES) or value == getattr(defaults, one.name):
                continue
            found[one.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str(getattr(value, "value", value))  # members of transformers' string enumerations
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def versions_now() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


__all__ = [
    "RESULTS_FILE",
    "RUN_FILE",
    "DataOrigin",
    "Measurement",
    "Origin",
    "RunRecord",
    "Speed",
    "add_evaluation",
    "differing_fields",
    "origin_of",
    "read_json",
    "read_run",
    "versions_now",
    "write_run",
]
