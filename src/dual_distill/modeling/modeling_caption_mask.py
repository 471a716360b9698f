"""Who sees whom while a caption is written: the mask and the positions that make a fusion encoder a writer.

Words see earlier words, object tags and the image; tags and image never see a word. So what is known of the image is
computed once, whatever the caption becomes, and a masked word is told by what stands before it. Tags take positions
behind the longest caption, so that they too do not move as the caption grows. A [MASK] that only asks for the word at
its index (`asked_mask`) is seen by nothing else, so that one text can ask for each of its words.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .modeling_layers import has_values

WORD_SEGMENT, TAG_SEGMENT = 0, 1


def seq2seq_mask(
    token_type_ids: Tensor,
    attention_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
    asked_mask: Tensor | None = None,
) -> Tensor:
    """Return which token of `[words and tags; image]` sees which, while a caption is learnt or written.

    Args:
        token_type_ids: `(B, T)`, 0 for words of the caption, 1 for object tags.
        attention_mask: `(B, T)`, 1 = real token; None: all real.
        image_mask: `(B, R)` or `(B, 1, R)` bool, True = real patch or region; None: no image.
        asked_mask: `(B, T)` bool, True = a [MASK] that nothing but itself sees; None: there are none.

    Returns:
        `(B, T + R, T + R)` bool, queries then keys: True where a real query sees a real key. Rows and columns of
        padding are False.

    Raises:
        ValueError: the image mask has several images a row.

    Example:
        >>> words_and_a_tag, region = torch.tensor([[0, 0, 1]]), torch.ones(1, 1).bool()
        >>> seq2seq_mask(words_and_a_tag, None, region)[0].int()
        tensor([[1, 0, 1, 1],
                [1, 1, 1, 1],
                [0, 0, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    is_word = token_type_ids == WORD_SEGMENT
    real = torch.ones_like(is_word) if attention_mask is None else attention_mask.bool()
    if image_mask is not None:
        if image_mask.dim() == 3 and image_mask.shape[1] != 1:
            raise ValueError(f"the rows have {image_mask.shape[1]} images, but a caption is about one; give one a row.")
        image_mask = image_mask[:, 0] if image_mask.dim() == 3 else image_mask
        is_word = torch.cat([is_word, torch.zeros_like(image_mask, dtype=torch.bool)], dim=1)
        real = torch.cat([real, image_mask.bool()], dim=1)

    num_tokens = is_word.shape[1]
    not_later = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=is_word.device).tril()
    if asked_mask is not None:
        hidden = nn.functional.pad(asked_mask, (0, num_tokens - asked_mask.shape[1]))[:, None, :]
        not_later = not_later & ~(hidden & not_later.tril(-1))
    sees = ~is_word[:, None, :] | (is_word[:, :, None] & not_later)
    return sees & real[:, None, :] & real[:, :, None]


def caption_positions(
    token_type_ids: Tensor, attention_mask: Tensor | None, config: PreTrainedConfig, asked_mask: Tensor | None = None
) -> Tensor:
    """Return the position of each word in its caption, and of each tag behind the longest caption.

    Args:
        token_type_ids: `(B, T)`, 0 for words, 1 for tags.
        attention_mask: `(B, T)`; padding takes no position.
        config: says `max_caption_tokens` and `max_position_embeddings`.
        asked_mask: `(B, T)` bool, True = a [MASK] at the position behind the words before it; it takes none.

    Returns:
        `(B, T)` int64.

    Raises:
        ValueError: a caption is longer than `max_caption_tokens`, or the position table ends before the tags do.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(max_caption_tokens=5, max_position_embeddings=8)
        >>> caption_positions(torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 1, 1]]), config)
        tensor([[0, 1, 1, 5, 6]])
    """
    real = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask.long()
    is_word = (token_type_ids == WORD_SEGMENT).long()
    asked = torch.zeros_like(is_word) if asked_mask is None else asked_mask.long()
    words = (is_word * real * (1 - asked)).cumsum(1) + asked
    tags = ((1 - is_word) * real).cumsum(1)
    if token_type_ids.numel() and has_values(token_type_ids):
        check_caption_length(int(words.max()), int(tags.max()), config)

    positions = torch.where(is_word.bool(), words - 1, tags - 1 + config.max_caption_tokens)
    return positions.clamp(min=0, max=config.max_position_embeddings - 1)


def check_caption_length(num_words: int, num_tags: int, config: PreTrainedConfig) -> None:
    """Raise a `ValueError` where captions or tags are longer than their positions."""
    longest = min(config.max_caption_tokens, config.max_position_embeddings)
    if num_words > longest:
        most = f"the model takes at most {longest}"
        raise ValueError(f"a caption has {num_words} tokens, {most}; truncate it (max_caption_tokens).")
    if num_tags and config.max_caption_tokens + num_tags > config.max_position_embeddings:
        there = f"there are {num_tags} tag tokens behind {config.max_caption_tokens} positions for the caption"
        way_out = "give fewer tags, lower max_caption_tokens, or raise max_position_embeddings"
        raise ValueError(f"{there}, but the position table has {config.max_position_embeddings}; {way_out}.")


def attention_mask_of(pattern: Tensor, config: PreTrainedConfig, queries: Tensor, keys: Tensor) -> Tensor:
    """Return a pattern in the form that the configured attention takes.

    Args:
        pattern: `(B, Q, K)` bool; each row needs a True.
        config: says which attention.
        queries: `(B, Q, C)`, for shape and type.
        keys: `(B, K, C)`, likewise.

    Raises:
        ValueError: the attention cannot take a pattern.
    """
    if "flash" in config._attn_implementation:
        raise ValueError(f"{config._attn_implementation} takes no mask of a caption; give attn_implementation='sdpa'.")

    return create_bidirectional_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=None,
        encoder_hidden_states=keys,
        and_mask_function=lambda batch, head, query, key: pattern[batch, query, key],
    )
