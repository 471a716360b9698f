"""A checkpoint goes to the Hub in one commit, or not at all.

Everything that can be refused is refused before a byte is sent. The commit names the head that was read before (its
parent), so of two pushes at once one wins and the other is told; weights that are uploaded before a failing commit
belong to no revision.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from .adapter import ADAPTER_CONFIG, read_card
from .checkpoint_folder import CARD, CONFIG, WEIGHTS, CheckpointFiles, collect, is_one_of, refuse_leaks
from .hand_written import Card, choose, parse_card
from .hub_errors import PushError, translate_hub_error
from .model_card import make_card
from .run_record import RunRecord, read_run
from .shipped_code import add_code


@dataclass(frozen=True)
class PushReport:
    """What a push sent, or in a dry run would send.

    Attributes:
        repo_id: the repository, with its owner once the Hub said it.
        revision: the branch; None: the main one.
        files: name -> bytes.
        left_out: what else lies in the folder.
        deleted: weights in the repository that are none of this checkpoint's, gone with the same commit.
        commit: the commit; None in a dry run.
        url: of the commit or pull request.
        changed: whether there was anything to commit; False: the repository held all of this already.
        dry_run: whether nothing was sent.
    """

    repo_id: str
    revision: str | None
    files: dict[str, int]
    left_out: tuple[str, ...]
    deleted: tuple[str, ...] = ()
    commit: str | None = None
    url: str | None = None
    changed: bool = True
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
    with_code: bool = False,
    license_name: str | None = None,
) -> PushReport:
    """Push a checkpoint's weights (or adapter), configuration, processor, card, picture and recipe in one commit.

    Args:
        folder: as `save_pretrained`, a Trainer or `dual-distill train` wrote it; only files of `PUBLISHED` go.
        repo_id: `owner/name`, or a name alone for one of your own; created when it is not there.
        private: whether a repository that is created is private; True also refuses one that is there and public.
        revision: branch to push to, made from the main one when it is not there.
        create_pr: open a pull request instead.
        message: of the commit.
        dry_run: only say what would be sent; the network is not touched.
        token: of the Hub; None: the one of this machine.
        with_code: send `modeling/` too, see `add_code`.
        license_name: the Hub's identifier of the licence of the weights.

    Raises:
        ValueError: the folder holds no checkpoint that may be published, or gives something away; nothing was sent.
        PushError: the Hub refused or could not be reached; the repository is as it was.
    """
    with translate_hub_error("checking its name", repo_id, "nothing was sent"):
        validate_repo_id(repo_id)
    checkpoint, run = collect(folder), read_run(folder)
    if checkpoint.adapter is not None and with_code:
        raise ValueError(
            "an adapter brings no code, which belongs beside its base; push the base with code, the adapter without."
        )
    local = read_card(Path(folder, CARD))

    def to_send(full_id: str, kept: Card | None) -> dict[str, bytes | Path]:
        card = make_card(
            checkpoint,
            run,
            repo_id=full_id,
            revision=revision,
            with_code=with_code,
            license_name=license_name,
            kept=kept,
        )
        files = {**checkpoint.files, CARD: card.encode()}
        if with_code:
            files = add_code(files, checkpoint.config["architectures"][0])
        refuse_leaks(files, _public_names(full_id, run, checkpoint))
        return files

    files = to_send(repo_id, local)
    if dry_run:
        return PushReport(repo_id, revision, _sizes(files), checkpoint.left_out, dry_run=True)

    api = HfApi(token=token, library_name="dual_distill")
    with translate_hub_error("creating it", repo_id):
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with translate_hub_error("reading its head", full_id):
        info, is_new_branch = _head(api, full_id, revision)
        if private and not info.private:
            raise PushError(
                f"{full_id!r} is public, but private was asked for; make it private first, or push elsewhere."
            )
        names = {sibling.rfilename for sibling in info.siblings or ()}
        _refuse_the_other_kind(full_id, names, checkpoint)
        remote = _remote_card(api, full_id, info.sha) if CARD in names else None
    files = to_send(full_id, choose(local, remote))
    # Left where they are, weights of an earlier push in another number of shards could be loaded instead of these.
    deleted = tuple(sorted(name for name in names if is_one_of(name, WEIGHTS) and name not in files))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in deleted]
    made_branch = revision if is_new_branch and not create_pr else None
    if made_branch is not None:
        with translate_hub_error(f"making the branch {made_branch!r}", full_id):
            api.create_branch(full_id, branch=made_branch, revision=info.sha)
    try:
        with translate_hub_error(
            "sending files and the commit",
            full_id,
            "the files there are as they were, and a second try is safe",
            "the commit is there whole or not at all, and a second try is safe",
        ):
            commit = api.create_commit(
                full_id,
                operations,
                commit_message=message or f"Upload {checkpoint.config['architectures'][0]} with dual_distill",
                revision=revision,
                create_pr=create_pr,
                parent_commit=info.sha,
            )
    except Exception as error:
        if made_branch is not None:
            _take_back(api, full_id, made_branch, info.sha, error)
        raise
    return PushReport(
        full_id,
        revision,
        _sizes(files),
        checkpoint.left_out,
        deleted,
        commit.oid,
        commit.pr_url or commit.commit_url,
        changed=commit.oid != info.sha,
    )


def push_pretrained(
    self: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
) -> str:
    """`PreTrainedModel.push_to_hub` of this package's models: `save_pretrained`, then `push_folder`, so one commit with
    a card.

    Args:
        self: the model.
        repo_id: as for `push_folder`.
        commit_message: of the commit.
        commit_description: refused, the card says more; kept for transformers' signature.
        private: as for `push_folder`.
        token: as for `push_folder`.
        revision: as for `push_folder`.
        create_pr: as for `push_folder`.
        max_shard_size: as for `save_pretrained`.
        tags: refused, the card knows its tags; kept for transformers' signature.

    Returns:
        Address of the commit or pull request.

    Raises:
        ValueError: a description or tags were given.
    """
    if tags or commit_description:
        raise ValueError(
            "tags and commit_description are not taken: the card is written from what the run did; put tags into the "
            "metadata "
            "of the repository's README, where they stay, and the description into commit_message."
        )
    with tempfile.TemporaryDirectory() as folder:
        self.save_pretrained(folder, max_shard_size=max_shard_size)
        report = push_folder(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            message=commit_message,
        )
    return str(report.url)


def _head(api: HfApi, repo_id: str, revision: str | None) -> tuple[ModelInfo, bool]:
    """The head to push onto, and whether the branch has to be made first."""
    try:
        return api.model_info(repo_id, revision=revision), False
    except RevisionNotFoundError:
        if revision is None:
            raise
        return api.model_info(repo_id), True


def _take_back(api: HfApi, repo_id: str, branch: str, sha: str | None, error: Exception) -> None:
    """Delete the branch that a failed push made, unless something was committed to it; what fails here is noted, not raised."""
    try:
        if api.model_info(repo_id, revision=branch).sha == sha:
            api.delete_branch(repo_id, branch=branch)
    except Exception as second:
        error.add_note(f"The branch {branch!r} was made and could not be taken back ({type(second).__name__}).")


def _remote_card(api: HfApi, repo_id: str, revision: str | None) -> Card:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder))
        return parse_card(file.read_text(encoding="utf-8"), f"{CARD} of {repo_id}")


def _refuse_the_other_kind(repo_id: str, names: set[str], checkpoint: CheckpointFiles) -> None:
    """A repository with a model and an adapter in it loads as either, by what else is installed."""
    if (CONFIG if checkpoint.adapter else ADAPTER_CONFIG) in names:
        there, given = ("a whole model", "an adapter") if checkpoint.adapter else ("an adapter", "a whole model")
        raise PushError(
            f"{repo_id!r} holds {there}, and {given} cannot stand beside it; push to a repository of its own."
        )


def _public_names(repo_id: str, run: RunRecord | None, checkpoint: CheckpointFiles) -> tuple[str, ...]:
    """Repositories that the files may name although their owner is the user."""
    base = checkpoint.adapter.base if checkpoint.adapter else None
    origins = [run.teacher, run.start] if run else []
    named = [origin.name for origin in origins if origin is not None and origin.on_hub]
    return tuple(name for name in (repo_id, base, *named, run.data.hub_id if run else None) if name and "/" in name)


def _sizes(files: dict[str, bytes | Path]) -> dict[str, int]:
    return CheckpointFiles(files, (), {}, 0).sizes()


__all__ = ["PushReport", "push_folder", "push_pretrained"]
