"""What a model that writes says about answers: how probable each is as the continuation of a prompt."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Length = Literal["sum", "mean"]


def answer_tokens(tokenizer: Any, answers: Sequence[str], end: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of L answers and their end, `(L, length)`, and which are real, as float.

    Raises:
        ValueError: there are no answers, or one has no token.
    """
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    if not ids or not all(ids):
        raise ValueError(f"{len(ids)} answers, of which one or more have no token; give texts that are not empty.")
    ids = [tokenizer(answer + end, add_special_tokens=False)["input_ids"] for answer in answers]
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
    end: str = "",
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
        answers: L texts, as they follow the prompt.
        end: what the chat template writes behind an answer; its tokens count too, so that "cat" is not the beginning
            of "cat and dog".
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
    tokens, real = answer_tokens(tokenizer, answers, end, device)
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


def yes_scores(tokenizer: Any, logits: Tensor, yes: str = "yes", no: str = "no") -> Tensor:
    """Log-odds of "yes" against "no" as the next token, `(B,)`, of logits `(B, S, V)`: how a reranker scores."""
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (no, yes)]
    return logits[:, -1, ids].float().diff(dim=-1)[:, 0]
