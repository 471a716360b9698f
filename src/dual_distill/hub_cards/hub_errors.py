"""What can go wrong on the wire, as sentences: which step, what the Hub said, what to do, what was changed."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

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
        dual_distill.hub_cards.hub_errors.PushError: push to 'me/model', reading it: HF_HUB_OFFLINE is set, ...
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
