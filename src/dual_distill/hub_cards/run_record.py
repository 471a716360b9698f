"""What a run did, as `run.json` beside the weights: the only place from which a card takes numbers.

The trainer writes it, evaluations are added to it (`evaluations`), card and push read it. A number that does not say
where it comes from is refused here, so that no card can hold one; and a record names the weights that it is about, so
that a card can tell when they have changed since.
"""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.utils import validate_repo_id

from dual_distill import sealed
from dual_distill.credentials import without_credentials

RUN_FILE = "run.json"
FORMAT = 2
# The Hub's own rule for names is narrower; what passes here and is no name is refused by the Hub in its words.
_NAME_AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@(.*)")
# The Hub's cache keeps each commit in models--OWNER--NAME/snapshots/COMMIT, and no name holds two dashes.
CACHED = re.compile(r".*[/\\]models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")
_DIGEST = "sha256:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Origin:
    """A checkpoint that a run used.

    Attributes:
        name: `owner/name` on the Hub, or the last part of a folder's path.
        revision: commit on the Hub; of a folder, "sha256:" and the digest of its weights.
        on_hub: whether `name` and `revision` are the Hub's.

    Raises:
        ValueError: there is no revision.
    """

    name: str
    revision: str
    on_hub: bool

    def __post_init__(self) -> None:
        """Refuse a checkpoint that could be any."""
        if not self.revision:
            raise ValueError(f"the checkpoint {self.name!r} has no revision; `origin_of` finds it.")

    def __str__(self) -> str:
        return f"{self.name} ({self.revision[:19]})"


@dataclass(frozen=True)
class ObjectiveRecord:
    """What a student was trained on beside a teacher.

    Attributes:
        name: of the class.
        weights: name of each weight -> its value.
        paper: `method`, `reference`, `title`, `url` and `bibtex` of where it was published; None: nowhere.
    """

    name: str
    weights: dict[str, float] = field(default_factory=dict)
    paper: dict[str, str] | None = None


@dataclass(frozen=True)
class DataOrigin:
    """The data that a run learned from.

    Attributes:
        name: what it is called; None: not known.
        rows: split -> number of rows that were used.
        hub_ids: `owner/name` of each data set that lies on the Hub.
        revision: commit or release of the data; None where it has none (generated data follows from `settings`).
        arguments: configuration of each data set, as `load_dataset` takes it.
        identity: what the rows of train are known by, wherever they lie; None: not known, or an older record.
        task: what `evaluate --task` calls such data, whatever `name` says; None: not known.
        content: what `evaluate` knows the data by, whatever part of train was used; None: not known.
        splits: what it knows each other split by.
    """

    name: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    hub_ids: list[str] = field(default_factory=list)
    revision: str | None = None
    arguments: list[str] = field(default_factory=list)
    identity: str | None = None
    task: str | None = None
    content: str | None = None
    splits: dict[str, str] = field(default_factory=dict)


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
        edition: of the script that scores so, where there are several; None: there is one.
        task: of other data than the run's, as `evaluate --task` calls them; None: the run's own data.

    Raises:
        ValueError: it has no source or split, or a number is not finite.

    Example:
        >>> Measurement("accuracy", 0.9, "test", source="")
        Traceback (most recent call last):
        ValueError: accuracy on test is 0.9 without a source; say which command or file gave it.
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
    edition: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        """Refuse what a card could not answer for."""
        name = f"{self.metric} on {self.split}"
        if not self.split:
            raise ValueError(f"{self.metric} is {self.value} without a split; say which rows it was measured on.")
        if not self.source:
            raise ValueError(f"{name} is {self.value} without a source; say which command or file gave it.")
        for number in (self.value, self.teacher, self.text_only, self.majority, *self.groups.values()):
            if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
                raise ValueError(f"{name} holds {number!r}; give finite numbers, or leave the measurement out.")


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one image-text pair.

    Attributes:
        model_ms: of this model, nothing stored.
        teacher_ms: of the teacher on the same pairs.
        device: what it ran on, by name.
        source: command or file that gave it.
        stored_images_ms: of this model when the images were encoded before; None: not measured.

    Raises:
        ValueError: source or device is empty.
    """

    model_ms: float
    teacher_ms: float
    device: str
    source: str
    stored_images_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse what a card could not answer for."""
        if not (self.source and self.device):
            raise ValueError("the speed has no source or no device; say which command gave it and on what.")


@dataclass(frozen=True)
class Preflight:
    """What was answered right before the first step, shares in [0, 1] of the same validation rows.

    Attributes:
        rows: how many.
        teacher: share of the teacher.
        student: share of the student as it starts.
        standard_error: the largest of one of these shares.
        text_only: share of a reader that never sees the image; None: not measured.
        seconds: that it took.
    """

    rows: int
    teacher: float
    student: float
    standard_error: float
    text_only: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """Everything about a run that a card may say.

    Attributes:
        objective: what the student imitated of its teacher; None: trained without a teacher.
        data: what it learned from.
        teacher: the frozen teacher; None without one.
        start: the checkpoint whose weights it started from; None: random weights, or not known.
        settings: fields of the recipe that differ from their defaults.
        seed: of the run.
        steps: optimizer steps.
        train_seconds: seconds of training.
        device: what it ran on, by name.
        command: the command line, without paths of the machine.
        measurements: quality.
        speed: against the teacher.
        preflight: teacher, words and student's start before the first step; None: not measured.
        versions: package -> version.
        weights: "sha256:" and the digest of the weights that all of this is about; written by `write_run`.
        model_name: what the model is called; None: as its repository or class.
        finetuned_from: repository that it was told to be fine-tuned from, in place of `start`.
        tasks: the Hub's identifiers of what it is for; none: those that follow from its head.
        changed: settings, rows and checkpoints with which a run was gone on with that were others before, by step.

    Example:
        >>> RunRecord(data=DataOrigin("scenes"), measurements=(Measurement("accuracy", 0.9, "test", "by hand"),)).steps
    """

    objective: ObjectiveRecord | None = None
    data: DataOrigin = field(default_factory=DataOrigin)
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
    preflight: Preflight | None = None
    versions: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


_NESTED = {"objective": ObjectiveRecord, "data": DataOrigin, "teacher": Origin, "start": Origin}
_NESTED |= {"speed": Speed, "preflight": Preflight}


def write_run(folder: str | Path, record: RunRecord) -> Path:
    """Write `run.json` beside the weights that it is about, with their digest; return the file.

    Raises:
        ValueError: the record is about other weights than lie in the folder.
    """
    weights = weights_digest(folder)
    if record.weights not in (None, weights):
        changed = f"those in {str(folder)!r} have changed since; train again, or delete run.json and write a new one"
        raise ValueError(f"the record is about weights {record.weights}, but {changed}.")

    # What was not noted is left out.
    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value not in (None, {}, (), [])}

    file = Path(folder, RUN_FILE)
    content = {"format": FORMAT, **asdict(replace(record, weights=weights), dict_factory=noted)}
    sealed.write_json(file, json.loads(without_credentials(json.dumps(content))))
    return file


def read_run(folder: str | Path) -> RunRecord | None:
    """Read the record of a checkpoint's folder; None: there is none.

    Raises:
        ValueError: the file is no JSON, no such record, or of a newer format.
    """
    file = Path(folder, RUN_FILE)
    if not file.is_file():
        return None

    values = sealed.read_json(file)
    found = values.pop("format", None)
    if found != FORMAT:
        way_out = "take the version that wrote it, or delete the file and let the run write it again"
        raise ValueError(f"{RUN_FILE} has format {found!r}, this version of dual_distill reads {FORMAT}; {way_out}.")
    try:
        nested = {name: kind(**values[name]) for name, kind in _NESTED.items() if values.get(name) is not None}
        measurements = tuple(Measurement(**one) for one in values.pop("measurements", ()))
        return RunRecord(**{**values, **nested}, measurements=measurements)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{RUN_FILE} is no record of a run ({error}); let the run write it again.") from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which PyYAML takes the last and says nothing."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]!r} stands there twice", problem_mark=node.start_mark)
        return node


def read_yaml(text: str) -> Any:
    """Read YAML, without tags that build objects.

    Raises:
        yaml.YAMLError: it is none, or a key stands twice in a mapping.
    """
    return _UniqueKeys(text).get_single_data()


def weights_digest(folder: str | Path) -> str | None:
    """Return "sha256:" and the digest of a checkpoint's weights, in shards or not; None: there are none."""
    # Of a whole model, or an adapter's; a named pipe would be waited for.
    files = sorted(file for file in Path(folder).glob("*model*.safetensors") if file.is_file())
    digest, known = hashlib.sha256(), sealed.read_seal(folder)
    for file in files:
        digest.update(bytes.fromhex(known.get(file.name) or sealed.digest_of(file)))
    return f"{_DIGEST}{digest.hexdigest()}" if files else None


def origin_of(name_or_path: str | Path, revision: str | None = None) -> Origin:
    """Say which checkpoint a run used: a commit of the Hub that was loaded before, or a folder by its weights' digest.

    Args:
        name_or_path: as it was loaded from, `owner/name@revision` too.
        revision: branch, tag or commit that was asked for.

    Raises:
        ValueError: the folder has no safetensors weights, or the name is none of the Hub or not in the local cache.
    """
    if found := CACHED.fullmatch(str(name_or_path)):
        owner, name, commit = found.groups()
        return Origin(f"{owner}/{name}", commit, on_hub=True)
    name, revision = split_revision(name_or_path, revision)

    # A folder is known by its weights, a repository by its commit.
    if Path(name).is_dir():
        digest = weights_digest(name)
        if digest is None:
            raise ValueError(f"{name!r} has no safetensors weights to know it by; give the folder of a checkpoint.")
        return Origin(Path(name).resolve().name, digest, on_hub=False)
    try:
        validate_repo_id(name)
        if revision is not None and _COMMIT.fullmatch(revision):
            return Origin(name, revision, on_hub=True)
        # One file, which everyone loads: a snapshot without its README, say, counts as incomplete.
        snapshot = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns="config.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name!r} is no folder and was not loaded from the Hub on this machine; load it.") from error
    return Origin(name, Path(snapshot).name, on_hub=True)  # the cache names snapshots by commit


def split_revision(name_or_path: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """Return a checkpoint's name without its `@revision`, and the revision.

    A folder that exists under the whole name is that folder, and nothing is cut off.

    Args:
        name_or_path: a folder, `owner/name`, or `owner/name@revision` with a branch, tag, commit or `refs/pr/N`.
        revision: the same, given apart.

    Returns:
        Name and revision; None: none was given.

    Raises:
        ValueError: two revisions that differ, nothing after the @, or what stands before it is a folder here.

    Example:
        >>> split_revision("me/student@v1"), split_revision("me/student"), split_revision("me/student@v1", "v1")
        (('me/student', 'v1'), ('me/student', None), ('me/student', 'v1'))
    """
    name = str(name_or_path)
    found = _NAME_AT_REVISION.fullmatch(name)
    if found is None or Path(name).is_dir():
        return name, revision

    repo, named = found.groups()
    if not named:
        raise ValueError(f"{name!r} names no revision after the @; give a branch, tag or commit, or leave the @ out.")
    if revision is not None and revision != named:
        raise ValueError(f"{name!r} names a revision, but {revision!r} is given as well; give one of the two.")
    if Path(repo).is_dir():
        raise ValueError(f"{repo!r} is a folder, which has no revision {named!r}; leave {'@' + named!r} out.")
    return repo, named
