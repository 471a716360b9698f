"""What a model that writes says about answers: how probable each is as the continuation of a prompt."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .prompts import Prompt

Length = Literal["sum", "mean"]
# A model without a chat template is asked without one.
_BARE = Prompt("", "")


def answer_tokens(
    tokenizer: Any, answers: Sequence[str], prompt: Prompt, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens of L answers and their end as they follow a prompt, `(L, length)`, and which are real, as float.

    Raises:
        ValueError: there are no answers, or one has no token.
    """

    def ids_of(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    if not answers or not all(ids_of(answers)):
        raise ValueError(f"{len(answers)} answers, of which one or more have no token; give texts that are not empty.")

    # Tokens differ with what stands before them (" red", or a word that begins a text), so they are read behind the
    # prompt's end. Where its last token would become another one there, the prompt as it was read is continued.
    texts = [f"{prompt.before_answer}{answer}{prompt.after_answer}" for answer in answers]
    [asked], joined = ids_of([prompt.after]), ids_of([prompt.after + text for text in texts])
    pairs = zip(joined, ids_of(texts), strict=True)
    ids = [whole[len(asked) :] if whole[: len(asked)] == asked else alone for whole, alone in pairs]

    tokens = pad_sequence([torch.tensor(each) for each in ids], batch_first=True)
    real = pad_sequence([torch.ones(len(each)) for each in ids], batch_first=True)
    return tokens.to(device), real.to(device)


@torch.no_grad()
def answer_logits(
    model: Callable[..., Any],
    tokenizer: Any,
    prompt_mask: Tensor,
    prefix: Any,
    answers: Sequence[str],
    prompt: Prompt = _BARE,
    *,
    best: int | None = None,
    keep: Tensor | None = None,
    length: Length = "sum",
    chunk_size: int = 64,
) -> Tensor:
    """Log-probability of each answer as what the model writes next; their softmax is the soft label.

    The prompt is read once: all answers continue its cached keys and values.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        prompt_mask: `(B, S)`, 1 for a real token of the prompts, which are padded on the left.
        prefix: what the model returned for them with `use_cache=True`: `logits` and `past_key_values`.
        answers: L texts.
        prompt: what the chat template writes around an answer. The tokens of its end count too, so that "cat" is not
            the beginning of "cat and dog".
        best: score only so many answers a row, those whose first token is the most probable; None: all.
        keep: `(B, n)` long, answers that are scored in any case, such as the label and the student's best.
        length: "sum" adds the log-probabilities of an answer's tokens: the probability that the model writes exactly
            this answer, which is what it would sample, and which falls with every token. "mean" divides by their
            number, so that long answers are not behind merely for their length: better where answers have very
            different lengths, but no probability of anything.
        chunk_size: how many answers of a row are continued at once.

    Returns:
        `(B, L)` float32 in nats; -inf for an answer that was not scored.

    Raises:
        ValueError: there are no answers, or one has no token.
    """
    device, rows, count = prefix.logits.device, len(prefix.logits), len(answers)
    tokens, real = answer_tokens(tokenizer, answers, prompt, device)
    first = prefix.logits[:, -1].float().log_softmax(-1)[:, tokens[:, 0]]

    # Which answers are continued: the same number in each row.
    chosen = torch.arange(count, device=device).expand(rows, -1)
    if best is not None and best < count:
        ranked = first if keep is None else first.scatter(1, keep.to(device), torch.inf)
        chosen = ranked.topk(min(best + (0 if keep is None else keep.shape[1]), count), dim=1).indices
    scores = torch.full_like(first, -torch.inf)
    for part in chosen.split(chunk_size, dim=1):
        later = _continue(model, prompt_mask, prefix.past_key_values, tokens[part], real[part])
        scores.scatter_(1, part, first.gather(1, part) + later)
    return scores / real.sum(1) if length == "mean" else scores


def _continue(model: Callable[..., Any], prompt_mask: Tensor, cache: Any, tokens: Tensor, real: Tensor) -> Tensor:
    """Log-probability of all tokens but the first, `(B, n)`, of `(B, n, length)` tokens behind cached prompts."""
    rows, count, length = tokens.shape
    if length == 1:
        return torch.zeros(rows, count, device=tokens.device)

    # Each answer continues a copy of its own, since a cache grows with what is read.
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(count)
    mask = torch.cat([prompt_mask.repeat_interleave(count, dim=0), real.flatten(0, 1)[:, :-1].long()], dim=1)
    read: dict[str, Any] = {"input_ids": tokens.flatten(0, 1)[:, :-1], "attention_mask": mask}
    deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
    if deltas is not None:
        # Qwen counts an image's tokens in two dimensions, so what follows has smaller positions than it has indices.
        positions = (mask.cumsum(-1) - 1)[:, 1 - length :] + deltas.repeat_interleave(count, 0)
        read["position_ids"] = positions.expand(3, -1, -1)
    outputs = model(**read, past_key_values=copied, use_cache=True)

    following = outputs.logits.float().log_softmax(-1).gather(-1, tokens.flatten(0, 1)[:, 1:, None])[..., 0]
    return (following * real.flatten(0, 1)[:, 1:]).sum(-1).unflatten(0, (rows, count))


def yes_scores(tokenizer: Any, logits: Tensor, yes: str = "yes", no: str = "no", prompt: Prompt = _BARE) -> Tensor:
    """Log-odds of "yes" against "no" as the next token, `(B,)`, of logits `(B, S, V)`: how a reranker scores.

    Raises:
        ValueError: both words begin with the same token.
    """
    tokens, _ = answer_tokens(tokenizer, (no, yes), prompt, logits.device)
    if tokens[0, 0] == tokens[1, 0]:
        raise ValueError(f"{yes!r} and {no!r} begin with the same token, which tells nothing; give other words.")
    return logits[:, -1, tokens[:, 0]].float().diff(dim=-1)[:, 0]
