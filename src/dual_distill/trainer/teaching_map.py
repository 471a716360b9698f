"""Asking a teacher as a function of a batch of columns, for engines that bring workers of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load, save

from dual_distill import data
from dual_distill.teachers import ForeignTeacher, content_of, load_teacher

from .stored_teacher import TeacherCollator, view_rows, view_settings
from .teacher_cache import RowCache, row_names


@dataclass(eq=False)
class TeachRows:
    """Rows become what a teacher says of them; loads the teacher where it runs, once a process.

    For the same engines as `dual_distill.inference.EncodeColumn`. `write_store` makes of all rows the store that
    `dual-distill teach` writes, from which students learn.

    Args:
        teacher: folder or Hub repository of any family of teachers.
        task: says which columns hold text and image.
        layers: whose attention is kept.
        answers: asked about; None: attention alone.
        relation_heads: heads over which attention is kept; None: the teacher's own.
        top_k: largest scores that are kept of each query; None: all.
        batch_size: rows a forward pass.
        device: of the teacher.
        revision: of a Hub repository.

    Example:
        >>> TeachRows("org/vlm", data.TASKS["scenes"], answers=["yes", "no"]).layers
        (-1,)
    """

    teacher: str
    task: data.Task
    layers: Sequence[int] = (-1,)
    answers: Sequence[str] | None = None
    relation_heads: int | None = None
    top_k: int | None = None
    batch_size: int = 8
    device: str = "cpu"
    revision: str | None = None
    _loaded: Any = field(default=None, init=False, repr=False)
    _content: str | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # Under equal names `datasets` would return what another content of the folder gave before.
        if (content := content_of(self.teacher, self.revision)) != self._content:
            self._content, self._loaded = content, None
        return {**vars(self), "_loaded": None}

    def _load(self) -> tuple[ForeignTeacher, TeacherCollator, dict[str, Any]]:
        """The teacher, what reads rows for it, and what a store of its views depends on."""
        if self._loaded is None:
            model, processor = load_teacher(self.teacher, self.revision)
            teacher = ForeignTeacher(model.to(self.device), processor, self.teacher)
            settings = view_settings(teacher, self.layers, self.answers, self.relation_heads, self.top_k)
            collator = TeacherCollator(data.DistillationCollator(None, self.task, ()), teacher)
            self._loaded = teacher, collator, settings
        return self._loaded

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch with three more.

        They are `key` of text and image, `view`, safetensors in bytes, and `made_with`, a fingerprint of teacher and
        settings.
        """
        teacher, collator, about = self._load()
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        keys: list[str] = []
        views: list[bytes] = []
        for start in range(0, len(rows), self.batch_size):
            some = collator.collator.read_rows(rows[start : start + self.batch_size], self.task.text_column)
            keys += row_names(collator.keys(some))
            read = {name.removeprefix("teacher_"): it.to(self.device) for name, it in collator.of_teacher(some).items()}
            views += map(save, view_rows(teacher, about, read, range(len(some))))
        return {**batch, "key": keys, "view": views, "made_with": [data.fingerprint(about)] * len(rows)}

    def write_store(self, rows: Any, store: data.FilePath) -> int:
        """Write what workers made of all rows into a store, without what it holds already.

        Args:
            rows: a `datasets.Dataset`, a Parquet file, or a folder of such, with `key`, `view` and `made_with`.
            store: folder, new or to be continued.

        Returns:
            How many rows the store has.

        Raises:
            ValueError: the rows were made, or the store was begun, with another teacher or other settings.
        """
        about = self._load()[2]
        found = data.table_rows(rows, data.fingerprint(about)).select_columns(["key", "view"])
        cache = RowCache(store, about)
        for row in found:
            if row["key"] not in cache:
                cache.keep(row["key"], load(row["view"]))
                cache.write_full()
        cache.flush()
        return len(cache)
