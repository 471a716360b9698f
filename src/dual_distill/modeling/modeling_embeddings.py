"""Embeddings of text and of image patches, under ViLT's names.

Patches keep raster order and none is sampled away; padding is at the bottom and right and is masked. The position table
is interpolated to each image's own grid by two small matrix products instead of a Python loop, so a batch of many sizes
has no data-dependent shape, no host synchronisation and no graph break under `torch.compile`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class TextEmbeddings(nn.Module):
    """Word + position + segment embeddings, normalised: `(B, T)` ids -> `(B, T, C)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.max_position_embeddings = config.max_position_embeddings

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        if token_type_ids is None:
            token_type_ids = input_ids.new_zeros(1, 1)
        if position_ids is None:
            position_ids = text_positions(input_ids, None, self.max_position_embeddings)

        segments, positions = self.token_type_embeddings(token_type_ids), self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + segments + positions))


class PatchEmbeddings(nn.Module):
    """One linear map per square patch: `(B, 3, H, W)` pixels -> `(B, C, H / patch, W / patch)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        channels, height, width = pixel_values.shape[-3:]
        if channels != self.num_channels:
            raise ValueError(f"pixel_values has {channels} channels, the model takes {self.num_channels}.")
        if height % self.patch_size or width % self.patch_size:
            does_not = f"which does not divide into patches of {self.patch_size}"
            way_out = "let the processor resize and pad it (size_divisor = patch_size)"
            raise ValueError(f"pixel_values is {height} x {width} pixels, {does_not}; {way_out}.")
        return self.projection(pixel_values)


class ImageEmbeddings(nn.Module):
    """CLS token + patches + positions of each image's own grid + the modality embedding of its index in the row.

    `FusionEmbeddings` adds text; all parameters lie flat, under ViLT's names.
    """

    reads_text = False

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        # First, as in ViLT: an optimizer's state tells parameters by their order.
        if self.reads_text:
            self.text_embeddings = TextEmbeddings(config)
        self.grid = config.patch_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.last_slot = config.modality_type_vocab_size - 1
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)

    def embed_image_rows(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, first_slot: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Embed `(B, N, 3, H, W)` or `(B, 3, H, W)` pixels as `(B, N, 1 + I, C)`, with the mask `(B, N, 1 + I)`.

        To each image the modality embedding of its index in the row is added, from row `first_slot` of the table on.
        """
        pixel_values = with_image_axis(pixel_values, 4)
        if pixel_values.dim() != 5:
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values has shape {shape}; give (B, N, 3, H, W) or (B, 3, H, W).")
        rows = pixel_values.shape[:2]
        real = None if pixel_mask is None else with_image_axis(pixel_mask, 3).flatten(0, 1)
        tokens, mask = self.embed_images(pixel_values.flatten(0, 1), real)

        # Images beyond the table share its last row.
        slots = torch.arange(first_slot, first_slot + rows[1], device=tokens.device)
        modality = self.token_type_embeddings(slots.clamp(max=self.last_slot))
        return tokens.unflatten(0, rows) + modality[:, None], None if mask is None else mask.unflatten(0, rows)

    forward: Callable[..., Any] = embed_image_rows

    def embed_images(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embed `(B, 3, H, W)` pixels as `(B, 1 + I, C)` tokens and give their `(B, 1 + I)` mask (None: all real)."""
        patches = self.patch_embeddings(pixel_values.to(self.cls_token.dtype))
        batch_size, _, rows, columns = patches.shape

        patch_mask = None
        if pixel_mask is not None:
            if pixel_mask.shape != (batch_size, *pixel_values.shape[-2:]):
                shapes = f"{tuple(pixel_mask.shape)}, pixel_values {tuple(pixel_values.shape)}"
                raise ValueError(f"pixel_mask has shape {shapes}.")
            # A patch counts as real when its top left pixel is: processors pad whole patches at the bottom and right.
            patch_mask = pixel_mask[:, :: self.patch_embeddings.patch_size, :: self.patch_embeddings.patch_size].bool()

        positions = self.interpolate_positions(rows, columns, patch_mask).to(patches.dtype)
        tokens = torch.cat([self.cls_token.expand(batch_size, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + positions
        if patch_mask is not None:
            patch_mask = torch.cat([patch_mask.new_ones(batch_size, 1), patch_mask.flatten(1)], dim=1)
        return self.dropout(tokens), patch_mask

    def interpolate_positions(self, rows: int, columns: int, patch_mask: Tensor | None) -> Tensor:
        """Resize the position table bilinearly (corners aligned) to each image's grid, padded to `rows x columns`.

        Returns:
            `(B or 1, 1 + rows * columns, C)`; what stands at padded patches is masked and means nothing.
        """
        cls_position, table = self.position_embeddings[:, :1], self.position_embeddings[0, 1:]
        if patch_mask is None:
            if (rows, columns) == self.grid:
                return self.position_embeddings
            heights, widths = table.new_full((1,), rows), table.new_full((1,), columns)
        else:
            # The largest extent, not the first row's: one image may be padded in a way that the other is not.
            heights, widths = patch_mask.any(2).sum(1), patch_mask.any(1).sum(1)

        # Positions are few and cheap, half precision would blur them.
        with torch.autocast(table.device.type, enabled=False):
            row_weights = _bilinear_weights(heights, rows, self.grid[0])
            column_weights = _bilinear_weights(widths, columns, self.grid[1])
            table = table.unflatten(0, self.grid).float()
            positions = torch.einsum("brp,bsq,pqc->brsc", row_weights, column_weights, table).flatten(1, 2)
        return torch.cat([cls_position.expand(positions.shape[0], -1, -1).float(), positions], dim=1)


def _bilinear_weights(lengths: Tensor, num_targets: int, num_sources: int) -> Tensor:
    """Return `(B, targets, sources)` weights that resize `num_sources` points to each of `lengths`, corners aligned."""
    lengths = lengths.float().unsqueeze(1)
    targets = torch.arange(num_targets, device=lengths.device).float()
    # A single target point sits on the first source point, as torch's interpolate has it.
    positions = targets * (num_sources - 1) / (lengths - 1).clamp(min=1)
    sources = torch.arange(num_sources, device=lengths.device)
    return (1 - (positions.unsqueeze(-1) - sources).abs()).clamp(min=0)


def text_positions(input_ids: Tensor, attention_mask: Tensor | None, limit: int) -> Tensor:
    """Return the position of each token in its text, `(B or 1, T)`: padding before the text takes none.

    Raises:
        ValueError: there are more tokens than positions.

    Example:
        >>> text_positions(torch.ones(2, 3), torch.tensor([[0, 1, 1], [1, 1, 0]]), limit=3)
        tensor([[0, 0, 1],
                [0, 1, 2]])
    """
    num_tokens = input_ids.shape[1]
    if num_tokens > limit:
        raise ValueError(f"the text has {num_tokens} tokens, the model takes at most {limit}; truncate it.")
    positions = torch.arange(num_tokens, device=input_ids.device)[None]
    return positions if attention_mask is None else (positions - leading_padding(attention_mask)).clamp(min=0)


def leading_padding(attention_mask: Tensor) -> Tensor:
    """Return how many padded tokens stand before each text, `(B, 1)`; `attention_mask` `(B, T)`."""
    return (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)


def with_image_axis(tensor: Any, dims: int) -> Any:
    """Give a tensor of one image a row its axis of images, `(B, ...)` -> `(B, 1, ...)`; `dims`: axes without it."""
    return tensor[:, None] if tensor is not None and tensor.dim() == dims else tensor


def check_one_image(pixel_values: Tensor | None, region_features: Tensor | None, task: str) -> None:
    """Refuse more than one image a row; `task` says what takes one."""
    for rows, one_image in ((pixel_values, 4), (region_features, 3)):
        if rows is not None and rows.dim() > one_image and rows.shape[1] != 1:
            raise ValueError(f"the rows have {rows.shape[1]} images, but {task}; give one image a row.")
