"""The dual encoder while it is pre-trained: contrast (ITC), matching (ITM), missing words (MLM).

Three terms of ALBEF's kind in a model whose towers never see each other. Matching and masked words pass through the
interaction alone: a pair by its two pooled vectors, a masked word by its own token state beside the pooled image.
Negatives for matching are drawn by the similarities that the contrastive term trains, from the batch of all processes;
they are pooled vectors that are there already, so they cost two small linear maps. Only masked words need a second pass
of the text tower.
"""

from typing import Any

import torch
from torch import Tensor

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_dual_encoder_retrieval import ContrastiveDualEncoder
from .modeling_heads import EncoderForPreTraining, MaskedWordHead, MatchingHead, Negatives, Similarities
from .modeling_pretraining_losses import PairIds, gather_rows, hard_negatives, itc_loss, pair_similarities


class DualEncoderForPreTraining(EncoderForPreTraining, ContrastiveDualEncoder):
    """Dual encoder with contrastive, matching and masked-word terms.

    A term is computed when its inputs are given and its weight in the configuration is not 0. With all three on, every
    parameter gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`; with fewer it does.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723, of whose pre-training no code is published.
        Li et al., NeurIPS 2021, arXiv 2107.07651 (ALBEF): hard negatives for matching drawn by contrastive similarity.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> text_tower, image_tower = dict(vocab_size=50, **tower), dict(image_size=8, patch_size=4, **tower)
        >>> model = DualEncoderForPreTraining(DualEncoderConfig(text_config=text_tower, vision_config=image_tower))
        >>> text, labels = torch.ones(3, 5, dtype=torch.long), torch.full((3, 5), -100)
        >>> labels[:, 2] = 7
        >>> output = model(input_ids=text, pixel_values=torch.zeros(3, 3, 8, 8), masked_input_ids=text,
        ...                masked_labels=labels, image_ids=torch.arange(3), caption_ids=torch.arange(3))
        >>> output.itm_logits.shape, output.mlm_logits.shape
        (torch.Size([9, 2]), torch.Size([3, 5, 50]))
        >>> round(output.itc_loss.item(), 4)  # equal texts, equal images: ln 3
        1.0986
    """

    _tied_weights_keys = {
        "mlm_score.decoder.weight": "dual_encoder.text_model.embeddings.text_embeddings.word_embeddings.weight"
    }

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        self.itm_score = MatchingHead(config.hidden_size)
        self.mlm_score = MaskedWordHead(config.text_config)
        self.post_init()

    def contrast(self, output: Any, ids: PairIds | None, results: dict[str, Any]) -> Similarities | None:
        """Project texts and images to one space, and hold all of them against one another."""
        # The text before it reads an image: what is compared with all images of the batch.
        texts, images = output.text_model_output.pooler_output, output.image_pooler_output[:, 0]
        results["text_pooler_output"] = texts
        if not self.config.itc_weight:
            return None

        results["text_embeds"], results["image_embeds"] = self.project_features(texts, images)
        if ids is None:
            return None
        similarities = pair_similarities(results["text_embeds"], results["image_embeds"], self.logit_scale)
        results["itc_loss"] = itc_loss(*similarities, ids)
        return similarities

    def fuse_negatives(self, output: Any, ids: PairIds, similarities: Any, inputs: dict[str, Any]) -> Negatives:
        """Fuse own texts with drawn images, then drawn texts with own images, `(2 * B, C)`; -1 takes row 0."""
        if similarities is None:  # nothing trains them: all alike
            alike = torch.zeros(ids.num_rows, len(ids.image_ids), device=ids.image_ids.device)
            similarities = (alike, alike)
        image_rows, text_rows = (
            hard_negatives(each, ids, texts_ask) for each, texts_ask in zip(similarities, (True, False), strict=True)
        )

        # The rows of all processes, and of them each pair's text and image.
        body, texts, vision = self.dual_encoder, output.text_model_output, output.vision_model_output
        pooled = gather_rows(torch.stack([texts.pooler_output, vision.pooler_output], dim=1))
        of_text = torch.cat([ids.own_rows, text_rows.clamp(min=0)])
        of_image = torch.cat([image_rows.clamp(min=0), ids.own_rows])
        pooled_texts, pooled_images = pooled[of_text, 0], pooled[of_image, 1]

        if body.interaction_model is not None:
            mask = inputs["attention_mask"]
            if mask is None:
                mask = torch.ones(texts.last_hidden_state.shape[:2], device=pooled.device)
            read = body.interaction_model(
                gather_rows(texts.last_hidden_state)[of_text],
                gather_rows(mask)[of_text],
                gather_rows(vision.last_hidden_state)[of_image][:, None],
                image_token_mask=gather_rows(vision.image_mask)[of_image][:, None],
            )
            pooled_texts = body.text_model.pooler(read.last_hidden_state)
        return (image_rows, text_rows), body.interaction(torch.cat([pooled_texts, pooled_images], dim=-1))

    def masked_word_states(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """Fuse every token of the masked text with the pooled image."""
        body = self.dual_encoder
        masked = body.text_model(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
        if body.interaction_model is not None:
            tokens = output.vision_model_output.last_hidden_state[:, None]
            masked = body.interaction_model(
                masked.last_hidden_state, inputs["attention_mask"], tokens, image_token_mask=output.image_mask
            )
        image = body.project_images(output.image_pooler_output[:, 0])[:, None]
        return body.fuse_projections(body.project_text(masked.last_hidden_state), image)
