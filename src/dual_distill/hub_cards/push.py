"""A checkpoint goes to the Hub in one commit, or not at all.

Everything that can be refused is refused before a byte is sent. The commit names the head that was read before (its
parent), so of two pushes at once one wins and the other is told; weights that are uploaded before a failing commit
belong to no revision.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from dual_distill.sealed import read_json

from .architectures import CONFIG, add_code, as_json
from .checkpoint_folder import ADAPTER_CONFIG, CARD, WEIGHTS, check_finite, collect, is_one_of, refuse_leaks
from .model_card import EVAL_RESULTS, eval_results, make_card

_WHAT_TO_DO = {
    401: "the Hub does not know you, or the repository is not yours; log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there; make one with write access to it on https://huggingface.co/settings/tokens",
    404: "it is not there, or your token may not see it; check the spelling and the token",
    409: "somebody else is changing it at this moment; try again",
    412: "somebody else pushed to it while this push was on its way, and theirs stands; look at it, then push again",
    413: "the Hub says that it is too large ({server})",
    429: "the Hub asks for a pause, too many requests were made; wait some minutes, then try again",
}
_REFUSED = "the Hub refused what was sent ({server})"
_SERVER_FAILED = "the Hub itself failed; try again in some minutes, and see https://status.huggingface.co"


class PushError(OSError):
    """A push that did not happen; the message says why, and what to do.

    Attributes:
        status: HTTP status of the answer; None: none came.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


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
    metadata: Mapping[str, Any] | None = None,
    state_folder: str | None = None,
) -> PushReport:
    """Push a checkpoint's weights (or adapter), configuration, processor, card, image and recipe in one commit.

    Args:
        folder: as `save_pretrained`, a Trainer or `dual-distill train` wrote it; only files of `PUBLISHED` go.
        repo_id: `owner/name`, or a name alone for one of your own; created when it is not there.
        private: whether a repository that is created is private; True also refuses one that is there and public.
        revision: branch to push to, made from the main one when it is not there.
        create_pr: open a pull request instead.
        message: of the commit.
        dry_run: only say what would be sent; the network is not touched.
        token: of the Hub; None: the one of this machine.
        with_code: send the modules of `modeling/` too.
        metadata: further metadata of the card, such as `license`, the Hub's identifier of that of the weights.
        state_folder: folder of the repository that the checkpoint goes to once more, whole, with the state that a run
            is resumed from; None: nowhere.

    Raises:
        ValueError: the folder holds no checkpoint that may be published, or gives something away; nothing was sent.
        PushError: the Hub refused or could not be reached; the repository is as it was.
    """
    with translate_hub_error("checking its name", repo_id, "nothing was sent"):
        validate_repo_id(repo_id)

    # What would be sent: the checkpoint, code for those without the package, and the state that a run resumes from.
    checkpoint = collect(folder)
    adapter, run, sent = checkpoint.adapter, checkpoint.run, checkpoint.files
    for content in sent.values():
        if isinstance(content, Path):
            check_finite(content)
    if with_code:
        if adapter:
            raise ValueError("an adapter brings no code; push its base with code, and the adapter without.")
        sent = add_code(sent, checkpoint.architecture)
    if state_folder:
        state = {path.name: as_json(_portable(path)) if path.suffix == ".json" else path for path in checkpoint.state}
        sent |= {f"{state_folder}/{name}": content for name, content in (checkpoint.files | state).items()}
    if results := eval_results(checkpoint):
        sent = {**sent, EVAL_RESULTS: results.encode()}

    # Names of repositories are public although their owner is the user.
    origins = [origin for origin in (run and run.teacher, run and run.start) if origin and origin.on_hub]
    named = [adapter["base_model_name_or_path"] if adapter else "", *(origin.name for origin in origins)]
    named += [*run.data.hub_ids, run.finetuned_from or ""] if run else []

    def with_card(full_id: str, on_hub: str | None = None) -> tuple[dict[str, bytes | Path], dict[str, int]]:
        card: dict[str, Any] = {"revision": revision, "with_code": with_code, "metadata": metadata, "on_hub": on_hub}
        files = {**sent, CARD: make_card(checkpoint, repo_id=full_id, **card).encode()}
        refuse_leaks(files, tuple(name for name in (full_id, *named) if "/" in name))
        return files, {name: it.stat().st_size if isinstance(it, Path) else len(it) for name, it in files.items()}

    files, sizes = with_card(repo_id)  # before the network is touched
    if dry_run:
        return PushReport(repo_id, revision, sizes, checkpoint.left_out, dry_run=True)

    # What is there: nothing is sent where it cannot be taken.
    api = HfApi(token=token, library_name="dual_distill")
    with translate_hub_error("creating it", repo_id):
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with translate_hub_error("reading its head", full_id):
        is_new_branch = False
        try:
            info = api.model_info(full_id, revision=revision)
        except RevisionNotFoundError:
            if revision is None:
                raise
            info, is_new_branch = api.model_info(full_id), True
        names = {sibling.rfilename for sibling in info.siblings or ()}
        if private and not info.private:
            raise PushError(f"{full_id!r} is public, but private was asked for; make it private, or push elsewhere.")
        if (CONFIG if adapter else ADAPTER_CONFIG) in names:  # both in one repository load as either
            there, given = ("a whole model", "an adapter") if adapter else ("an adapter", "a whole model")
            raise PushError(f"{full_id!r} holds {there}, and {given} cannot stand beside it; push it elsewhere.")
        on_hub = _read_remote(api, full_id, info.sha) if CARD in names else None

    files, sizes = with_card(full_id, on_hub)
    # Left where they are, weights of an earlier push in another number of shards could be loaded instead of these, and
    # the state of an earlier step taken up.
    ours = (*WEIGHTS, EVAL_RESULTS, *((f"{state_folder}/*",) if state_folder else ()))
    deleted = tuple(sorted(name for name in names - files.keys() if is_one_of(name, ours)))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in deleted]
    operations += [CommitOperationAdd(name, str(it) if isinstance(it, Path) else it) for name, it in files.items()]

    # One commit, on the head that was read before, or none; a branch that was made for it goes again.
    after = "the files there are as they were, and a second try is safe"
    without_answer = "the commit is there whole or not at all, and a second try is safe"
    made = _branch(api, full_id, revision, info.sha) if revision and is_new_branch and not create_pr else nullcontext()
    with made, translate_hub_error("sending files and the commit", full_id, after, without_answer):
        commit = api.create_commit(
            full_id,
            operations,
            commit_message=message or f"Upload {checkpoint.architecture.name} with dual_distill",
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
    address, changed = commit.pr_url or commit.commit_url, commit.oid != info.sha
    return PushReport(full_id, revision, sizes, checkpoint.left_out, deleted, commit.oid, address, changed)


def push_pretrained(
    self: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
    **options: Any,
) -> str:
    """`PreTrainedModel.push_to_hub` of this package's models: `save_pretrained`, then one commit with a card.

    Args:
        self: the model.
        repo_id: as for `push_folder`.
        commit_message: of the commit.
        max_shard_size: as for `save_pretrained`.
        tags: of the card, beside its own.
        **options: `private`, `token`, `revision` and `create_pr` of `push_folder`.

    Returns:
        Address of the commit or pull request.
    """
    with tempfile.TemporaryDirectory() as folder:
        self.save_pretrained(folder, max_shard_size=max_shard_size)
        report = push_folder(folder, repo_id, message=commit_message, metadata={"tags": tags}, **options)
    return str(report.url)


@contextmanager
def _branch(api: HfApi, repo_id: str, branch: str, sha: str | None) -> Iterator[None]:
    """Make a branch for a push; it goes again where the push fails, unless something was committed to it."""
    with translate_hub_error(f"making the branch {branch!r}", repo_id):
        api.create_branch(repo_id, branch=branch, revision=sha)
    try:
        yield
    except Exception as error:
        try:
            if api.model_info(repo_id, revision=branch).sha == sha:
                api.delete_branch(repo_id, branch=branch)
        except Exception as second:
            error.add_note(f"The branch {branch!r} was made and could not be taken back ({type(second).__name__}).")
        raise


def _read_remote(api: HfApi, repo_id: str, revision: str | None) -> str:
    """The card that lies on the Hub."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder)).read_text(encoding="utf-8")


def _portable(file: Path) -> dict[str, Any]:
    """A JSON file of a run's state, with the best checkpoint by its name alone: its path is this machine's."""
    content = read_json(file)
    best = content.get("best_model_checkpoint")
    return {**content, "best_model_checkpoint": Path(best).name} if best else content


@contextmanager
def translate_hub_error(
    step: str, repo_id: str, afterwards: str = "nothing was changed there", without_answer: str | None = None
) -> Iterator[None]:
    """Turn errors of the wire into a `PushError`; others pass.

    Args:
        step: what was being done, as in "creating the repository".
        repo_id: the repository.
        afterwards: what holds after a failure in this step.
        without_answer: the same when no answer came; None: `afterwards`.

    Raises:
        PushError: the Hub refused, or could not be reached.

    Example:
        >>> with translate_hub_error("reading it", "me/model"):
        ...     raise OfflineModeIsEnabled("offline")
        Traceback (most recent call last):
        dual_distill.hub_cards.push.PushError: push to 'me/model', reading it: HF_HUB_OFFLINE is set, ...
    """
    try:
        yield
    except Exception as error:
        found = _explain(error)
        if found is None:
            raise
        reason, status = found
        if status is None and without_answer is not None:
            afterwards = without_answer
        raise PushError(f"push to {repo_id!r}, {step}: {reason}; {afterwards}.", status) from error


def _explain(error: BaseException | None) -> tuple[str, int | None] | None:
    """Return the sentence and status for the first cause that is one of the wire; None: it is something else."""
    while error is not None:
        if isinstance(error, HFValidationError):
            return f"{str(error).rstrip('.')}; give it as owner/name", None
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the Hub was not asked; unset it to push", None
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            server = " ".join((error.server_message or "no reason given").split())
            words = _WHAT_TO_DO.get(status, _SERVER_FAILED if status >= 500 else _REFUSED)
            return f"status {status}, {words.format(server=server)}", status
        # huggingface_hub hands on the errors of its HTTP client, httpx or a successor of it, by release.
        if type(error).__module__.split(".")[0].startswith(("httpx", "httpcore")):
            reason = f"{type(error).__name__}: {error}"
            return f"the Hub could not be reached ({reason}); check the network and try again", None
        error = error.__cause__ or error.__context__
    return None
