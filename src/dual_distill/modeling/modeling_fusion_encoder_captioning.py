"""A fusion encoder that describes an image: learnt as masked words under a one-way mask, written word by word.

Unusual here: a word is not told from the word before it, but from a [MASK] at its own index, as the model was trained.
So each step of decoding reads two tokens, the word just written and a new [MASK]; the keys of the word are kept, those
of the [MASK] are not. Tags and image see no word, so they are read once for an image; what later words need of them are
keys and values, which all beams of the image share.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_caption_mask import TAG_SEGMENT, WORD_SEGMENT, check_caption_length
from .modeling_embeddings import check_one_image
from .modeling_fusion_encoder_heads import IMAGE_DIMS, FusionEncoderForWords
from .modeling_layers import QueriesAndKeys

MAX_NEW_TOKENS = 20
"""Longest caption that is written unless told otherwise, in tokens."""


class FusionEncoderForCaptioning(FusionEncoderForWords, GenerationMixin):
    """Fusion encoder that writes captions, from patches as well as from object tags and regions.

    Words of the caption (segment 0) see earlier words, tags (segment 1) and the image; those never see a word
    (`seq2seq_mask`). `forward` learns masked words under this mask; `generate` writes: greedy, or in beams
    (`num_beams=5`), unless told otherwise at most 20 tokens and no more than there are positions for, up to the
    config's `eos_token_id`. One that reads patches works in transformers' own
    `pipeline("image-text-to-text", model=folder)(images=image, text="", generate_kwargs={"num_beams": 5})`.

    The pooler is there for `pooler_output` alone: under DistributedDataParallel train with
    `ddp_find_unused_parameters=True`.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4, bos_token_id=2, eos_token_id=3, mask_token_id=4)
        >>> model = FusionEncoderForCaptioning(config).eval()
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 5, 50])
        >>> captions = model.generate(pixel_values=torch.zeros(3, 3, 8, 8), num_beams=2, max_new_tokens=6)
        >>> len(captions), captions[:, 0], captions.shape[1] <= 7
        (3, tensor([2, 2, 2]), True)
    """

    # It has no mask of this kind.
    _supports_flash_attn = False
    one_image = "a caption is written about one"

    def add_head(self, config: FusionEncoderConfig) -> None:
        """Build the decoder of words, and say how captions begin and end."""
        super().add_head(config)
        tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        # Beside the words stands [CLS] before them, or the [MASK] behind.
        longest = min(config.max_caption_tokens, config.max_position_embeddings) - 1
        self.generation_config = GenerationConfig(**tokens, max_new_tokens=min(MAX_NEW_TOKENS, longest))

    def use_tokens_of(self, tokenizer: Any) -> None:
        """Take the ids that writing needs from a BERT-like tokenizer: [CLS] begins, [SEP] ends, [PAD] fills.

        Args:
            tokenizer: has `cls_token_id`, `sep_token_id`, `mask_token_id` and `pad_token_id`.

        Raises:
            ValueError: one of them is None.
        """
        names = {"bos_token_id": "cls", "eos_token_id": "sep", "mask_token_id": "mask", "pad_token_id": "pad"}
        for name, special in names.items():
            value = getattr(tokenizer, f"{special}_token_id")
            if value is None:
                raise ValueError(f"the tokenizer has nothing for {name}; captions need [CLS], [SEP], [MASK] and [PAD].")
            setattr(self.config, name, value)
            if name != "mask_token_id":
                setattr(self.generation_config, name, value)

    def encode_rows(self, **inputs: Any) -> Any:
        """Encode captions under their mask; while one is written, its new words and the [MASK] behind them.

        Args:
            **inputs: as in `FusionEncoderModel.forward`. While writing, `context_states` and `context_mask` that
                `read_context` gave stand in place of tags and image, `input_ids` are the words since the last step and
                a [MASK], of which the logits are returned, and `past_key_values` are the words so far, lengthened by
                the new words, not by the [MASK]. With `written` `(B, L)`, captions as `generate` returned them, the
                text is that which was given to it, and the logits `(B, L - 1, vocabulary)` those that it found.
        """
        writing = [inputs.pop(name, None) for name in ("context_states", "context_mask", "past_key_values")]
        if writing[0] is not None:
            return self._write(inputs["input_ids"], *writing)
        written = inputs.pop("written", None)
        if written is not None:
            return self._read_again(written, **inputs)
        return super().encode_rows(**inputs, caption_mask=True)

    def _read_again(
        self,
        written: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        **inputs: Any,
    ) -> Any:
        """Encode the [MASK] of each word but the first, all in one text: `[CLS] [MASK] word [MASK] ... tags`."""
        words, asked = written[:, :-1], torch.full_like(written[:, :-1], self.config.mask_token_id)
        text = torch.stack([words, asked], 2).flatten(1)
        is_asked = torch.tensor([False, True], device=text.device).repeat(words.shape[1]).expand_as(text)
        tag_ids, tag_mask = self._tags_of(input_ids, attention_mask, token_type_ids, written)

        rows = {
            "input_ids": (text, tag_ids),
            "attention_mask": (torch.ones_like(text), tag_mask),
            "token_type_ids": (torch.full_like(text, WORD_SEGMENT), torch.full_like(tag_ids, TAG_SEGMENT)),
            "asked_mask": (is_asked, torch.zeros_like(tag_ids, dtype=torch.bool)),
        }
        inputs |= {name: torch.cat(pair, 1) for name, pair in rows.items()}
        output = super().encode_rows(**inputs, caption_mask=True)
        output.last_hidden_state = output.last_hidden_state[:, 1 : text.shape[1] : 2]
        return output

    def read_context(
        self, tag_ids: Tensor, tag_mask: Tensor, **image: Tensor | None
    ) -> tuple[list[QueriesAndKeys], Tensor]:
        """Read tags and image once, for all the words that will be written about them.

        Args:
            tag_ids: `(B, K)` word pieces of the tags, K may be 0.
            tag_mask: `(B, K)`, 1 = real.
            **image: `pixel_values` and `pixel_mask`, or `region_features`, `region_boxes` and `region_mask`.

        Returns:
            Keys and values `(B, H, K + I, D)` of each layer, and a mask `(B, K + I)`, True = real; I tokens of the
            image.
        """
        states: list[QueriesAndKeys] = []

        def keep(keys: Tensor, values: Tensor) -> QueriesAndKeys:
            # In one piece a head, as each step multiplies them.
            states.append((keys.contiguous(), values.contiguous()))
            return states[-1]

        output = self.fusion_encoder(
            input_ids=tag_ids,
            attention_mask=tag_mask,
            token_type_ids=torch.full_like(tag_ids, TAG_SEGMENT),
            caption_mask=True,
            by_layer={"extend_keys": [keep] * self.config.num_hidden_layers, "num_queries": self._read_on},
            return_dict=True,
            **image,
        )
        return states, torch.cat([tag_mask.bool(), output.image_mask[:, 0]], dim=1)

    @property
    def _read_on(self) -> list[int]:
        """Last tokens that each layer hands on, 0 for all: behind the last layer only the last token is read."""
        # A mask of flex attention is made of blocks and cannot be cut to a token.
        last = 0 if self.config._attn_implementation == "flex_attention" else 1
        return [0] * (self.config.num_hidden_layers - 1) + [last]

    def _write(
        self,
        input_ids: Tensor,
        context_states: Sequence[QueriesAndKeys],
        context_mask: Tensor,
        past_key_values: Cache | None,
    ) -> BaseModelOutputWithPast:
        """Encode the [MASK] at the end of `input_ids`, from which the next word is told."""
        num_new = input_ids.shape[1]
        num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        check_caption_length(num_past + num_new, 0, self.config)
        # Before the first word all rows of an image are alike: one is read.
        alike = len(input_ids) // len(context_states[0][0]) if num_past + num_new == 2 else 1
        input_ids, context_mask = input_ids[::alike], context_mask[::alike]
        positions = torch.arange(num_past, num_past + num_new, device=input_ids.device).expand_as(input_ids)
        tokens = self.fusion_encoder.embeddings.embed_text(input_ids, None, positions)

        # New words see tags, image and earlier words; the rows of an image, beams or samples, share its keys.
        earlier = context_mask.new_ones((len(tokens), num_new, num_past + num_new)).tril(num_past)
        mask = torch.cat([context_mask[:, None].expand(-1, num_new, -1), earlier], dim=2)[:, None]
        by_layer: dict[str, Sequence[Any]] = {"shared_states": context_states, "num_queries": self._read_on}
        if past_key_values is not None:
            layers = range(self.config.num_hidden_layers)
            by_layer["extend_keys"] = [partial(past_key_values.update, layer_idx=layer) for layer in layers]

        encoder = self.fusion_encoder.encoder
        hidden_states, _ = encoder(tokens, mask, by_layer=by_layer, image_by_image=True)
        if past_key_values is not None:
            # The [MASK] was asked, not written.
            past_key_values.crop(-1)
            past_key_values.batch_repeat_interleave(alike)
        last = self.fusion_encoder.layernorm(hidden_states[:, -1:]).repeat_interleave(alike, dim=0)
        return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=past_key_values)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a caption for each row, by transformers' `generate`.

        Args:
            input_ids: `(B, T)`, `[CLS] tags [SEP]` or `[CLS] [SEP] tags [SEP]` as the processor gives; None: no tags.
            generation_config: as for transformers' `generate`; None: the model's own.
            attention_mask: `(B, T)`.
            token_type_ids: `(B, T)`, 1 for tags and what ends them; None: no tags.
            **kwargs: the image, `pixel_values` `(B, 1, 3, H, W)` or `(B, 3, H, W)` and `pixel_mask` `(B, 1, H, W)`, or
                `region_features` `(B, R, F)`, `region_boxes` `(B, R, 6)` and `region_mask` `(B, R)`; and what
                transformers' `generate` takes: `num_beams`, `max_new_tokens`, `length_penalty`, `do_sample`,
                `use_cache`, `return_dict_in_generate`, and so on.

        Returns:
            `(B * num_return_sequences, L)` ids from [CLS] on, behind the end [PAD] (in beams [SEP], where [PAD] has the
            id 0); or transformers' output classes.

        Raises:
            ValueError: the ids that writing needs are not in the config, or the rows hold words beside the tags.
        """
        asked = generation_config or self.generation_config
        own = self.generation_config.bos_token_id if asked.bos_token_id is None else asked.bos_token_id
        begin, mask_token = kwargs.get("bos_token_id", own), self.config.mask_token_id
        if begin is None or mask_token is None:
            found = f"bos_token_id is {begin} and the config's mask_token_id {mask_token}, but captions need both"
            raise ValueError(f"{found}; call model.use_tokens_of(tokenizer) and save the model again.")

        image = {name: kwargs.pop(name, None) for name in IMAGE_DIMS}
        pixels, regions = image["pixel_values"], image["region_features"]
        check_one_image(pixels, regions, self.one_image)
        if pixels is None and regions is None:
            raise ValueError("a caption is about an image; give pixel_values, or region_features and region_boxes.")

        # Tags and image are read once; a beam costs its words alone: transformers does not repeat a list.
        rows = pixels if regions is None else regions
        tag_ids, tag_mask = self._tags_of(input_ids, attention_mask, token_type_ids, rows)
        context_states, context_mask = self.read_context(tag_ids, tag_mask, **image)
        start = torch.full((len(rows), 1), begin, dtype=torch.long, device=rows.device)
        context = {"context_states": context_states, "context_mask": context_mask}
        return super().generate(start, generation_config=generation_config, **context, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        context_states: Sequence[QueriesAndKeys] | None = None,
        context_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Lay out a step: the words since the last one (without a cache all of them) and a [MASK]."""
        words = torch.cat([input_ids, torch.full_like(input_ids[:, :1], self.config.mask_token_id)], dim=1)
        num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        context = {"context_states": context_states, "context_mask": context_mask}
        return {"input_ids": words[:, num_past:], "past_key_values": past_key_values, **context}

    def _tags_of(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, token_type_ids: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ids and mask `(B, K)` of the tags; refuse words, which the caption would have to begin with."""
        if input_ids is None:
            none = torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device)
            return none, none
        if len(input_ids) != len(rows):
            raise ValueError(f"input_ids has {len(input_ids)} rows, the images {len(rows)}; give one text for each.")

        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        segments = torch.full_like(input_ids, WORD_SEGMENT) if token_type_ids is None else token_type_ids
        frame = [self.generation_config.bos_token_id, self.generation_config.eos_token_id, self.config.pad_token_id]
        known = torch.tensor([-1 if token is None else token for token in frame], device=input_ids.device)

        # The text that is given holds tags; the caption begins with [CLS], whatever it says.
        words = (segments == WORD_SEGMENT) & real.bool() & ~torch.isin(input_ids, known)
        if words.any():
            holds = f"row {int(words.any(1).nonzero()[0])} of input_ids holds words beside the tags"
            way_out = "give [CLS] and the tags (token_type_ids 1) alone"
            raise ValueError(f"{holds}, but a caption is written from its beginning; {way_out}.")

        tags = real * (segments == TAG_SEGMENT)
        columns = tags.any(dim=0)
        return input_ids[:, columns], tags[:, columns]
