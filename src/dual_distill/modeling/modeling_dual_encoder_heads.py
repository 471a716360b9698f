"""The heads of the dual encoder: answers and classes, retrieval, and pre-training.

Retrieval gives cosines of projected texts and images, every text with every image. Its outputs are those of
transformers' CLIP, so what works with CLIP (the zero-shot image classification pipeline, an index of vectors) works
with it. The shallow interaction takes no part there; it stays in the body, where other heads find it.

Pre-training has three terms of ALBEF's kind, contrast (ITC), matching (ITM) and missing words (MLM), in a model whose
towers never see each other. Matching and masked words pass through the interaction alone: a pair by its two pooled
vectors, a masked word by its own token state beside the pooled image. Negatives for matching are drawn by the
similarities that the contrastive term trains, from the batch of all processes; they are pooled vectors that are there
already, so they cost two small linear maps. Only masked words need a second pass of the text tower.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_base import returns_tuple
from .modeling_dual_encoder import DualEncoderModel
from .modeling_embeddings import check_one_image
from .modeling_heads import (
    ClassifierHead,
    EncoderForPreTraining,
    EncoderForTask,
    EncoderWithHead,
    Negatives,
    Similarities,
    masked_word_head,
    matching_head,
)
from .modeling_layers import AskedLayers
from .modeling_losses import (
    PairIds,
    check_pair_ids,
    gather_pair_ids,
    gather_rows,
    hard_negatives,
    inverse_temperature,
    itc_loss,
    pair_similarities,
    unlike_ids,
)
from .modeling_outputs import (
    DualEncoderForImageTextRetrievalOutput,
    EncoderOutput,
    ImageFeaturesOutput,
    TowerOutput,
    shared_fields,
)
from .modeling_ranking_lists import choose_lists, listed_scores, scored_lists
from .modeling_towers import DualEncoderPreTrainedModel

# What sentence-transformers reads of a folder, beside its config.json: modules that it has itself, so that nothing of
# the folder is run, and the methods below for each kind of input.
_EMBED = {kind: {"method": f"embed_{kind}s", "method_output_name": None} for kind in ("text", "image")}
SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "retrieval",
        "modality_config": _EMBED,
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "requirements": {"dual-distill": {"specifier": ">=0.1", "reason": "import dual_distill before it is loaded"}},
    },
}


class DualEncoderWithHead(EncoderWithHead, DualEncoderPreTrainedModel):
    """A dual encoder and what a subclass puts on top of it."""

    body_class = DualEncoderModel

    def get_text_features(self, *args: Tensor, **kwargs: Any) -> TowerOutput:
        """Encode texts alone; see `DualEncoderModel.get_text_features`."""
        return self.dual_encoder.get_text_features(*args, **kwargs)

    def get_image_features(self, *args: Tensor, **kwargs: Any) -> ImageFeaturesOutput:
        """Encode images alone; see `DualEncoderModel.get_image_features`."""
        return self.dual_encoder.get_image_features(*args, **kwargs)


class DualEncoderForTask(ClassifierHead, EncoderForTask, DualEncoderWithHead):
    """A dual encoder and a classifier; subclasses say how many images it reads."""

    def project_text(self, text_pooler_output: Tensor) -> Tensor:
        """Give the text's half of the interaction; see `DualEncoderModel.project_text`."""
        return self.dual_encoder.project_text(text_pooler_output)

    def project_images(self, image_pooler_output: Tensor) -> Tensor:
        """Give the image's half of the interaction; see `DualEncoderModel.project_images`."""
        return self.dual_encoder.project_images(image_pooler_output)

    def logits_of_projections(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """Give the logits of B rows from the two halves of the interaction's first linear map, without any check.

        Args:
            text_embeds: `(B, 2C)` from `project_text`, or `(1, 2C)`: one text for all rows.
            image_embeds: `(B, N, 2C)` from `project_images`, or `(1, N, 2C)`: the same images for all rows.

        Returns:
            `(B, labels)`, equal to `forward`'s logits.
        """
        if self.config.interaction_layers:
            raise ValueError("this model has interaction layers, which read an image's tokens; call it with those.")
        fused = self.dual_encoder.fuse_projections(text_embeds[:, None], image_embeds)
        return self.classify(fused)


class DualEncoderForQuestionAnswering(DualEncoderForTask):
    """Dual encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> vision = dict(image_size=8, patch_size=4, **tower)
        >>> model = DualEncoderForQuestionAnswering(
        ...     DualEncoderConfig(text_config=tower, vision_config=vision, num_labels=7))
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """


class DualEncoderForImagesAndTextClassification(DualEncoderForTask):
    """Dual encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     num_images=2, text_config=tower, vision_config=dict(image_size=8, patch_size=4, **tower))
        >>> model = DualEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    reads_config_images = True


class ContrastiveDualEncoder(DualEncoderWithHead):
    """A dual encoder with projections to one space of texts and images, and a learned temperature."""

    def add_head(self, config: DualEncoderConfig) -> None:
        """Build the projections and the temperature."""
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        # One number, but not a scalar: FSDP2 cannot shard those.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContrastiveDualEncoder):
            init.constant_(module.logit_scale, float(self.config.logit_scale_init))

    def project_features(self, text_pooler_output: Tensor, image_pooler_output: Tensor) -> tuple[Tensor, Tensor]:
        """Project pooled vectors of texts and of images to length 1: `(B, C)` -> `(B, P)` float32 each."""
        text, image = self.text_projection(text_pooler_output), self.image_projection(image_pooler_output)
        return normalize(text.float(), dim=-1), normalize(image.float(), dim=-1)

    def fuse_rows(self, texts: Any, vision: Any, attention_mask: Tensor, of_text: Tensor, of_image: Tensor) -> Tensor:
        """Fuse texts and images of the batch of all processes, which two towers encoded, in other pairs: `(P, C)`.

        Args:
            texts: output of the text tower, B texts.
            vision: output of the image tower, B images.
            attention_mask: `(B, T)`.
            of_text: `(P,)` int64, row of each pair's text among those of all processes.
            of_image: `(P,)` int64, row of its image.
        """
        body = self.dual_encoder
        pooled = gather_rows(torch.stack([texts.pooler_output, vision.pooler_output], dim=1))
        pooled_texts, pooled_images = pooled[of_text, 0], pooled[of_image, 1]

        if body.interaction_model is not None:
            read = body.interaction_model(
                gather_rows(texts.last_hidden_state)[of_text],
                gather_rows(attention_mask)[of_text],
                gather_rows(vision.last_hidden_state)[of_image][:, None],
                image_token_mask=gather_rows(vision.image_mask)[of_image][:, None],
                return_dict=True,
            )
            pooled_texts = body.text_model.pool(read.last_hidden_state, gather_rows(attention_mask)[of_text])
        return body.interaction(torch.cat([pooled_texts, pooled_images], dim=-1))

    @returns_tuple
    def get_text_features(self, *args: Tensor, **kwargs: Any) -> TowerOutput:
        """Encode texts alone: `pooler_output` is `(B, P)`, projected and not yet of length 1, as CLIP's.

        The arguments are those of `DualEncoderModel.get_text_features`, which gives the vectors before projection.
        """
        output = super().get_text_features(*args, **kwargs)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    @returns_tuple
    def get_image_features(self, *args: Tensor, **kwargs: Any) -> ImageFeaturesOutput:
        """Encode images alone: `pooler_output` is `(B, P)`, projected and not yet of length 1, as CLIP's.

        The arguments are those of `DualEncoderModel.get_image_features`, which gives the vectors before projection; for
        `(B, N, 3, H, W)` pixels the result is `(B, N, P)`.
        """
        output = super().get_image_features(*args, **kwargs)
        output.pooler_output = self.image_projection(output.pooler_output)
        return output


class DualEncoderForImageTextRetrieval(ContrastiveDualEncoder):
    """Dual encoder that ranks images for a text and texts for an image by the cosine of their projections.

    With interaction layers it has a score of pairs too, `match_scores`, which orders the nearest anew, and which
    `forward` gives of lists alone. The interaction takes no other part there and gets no gradient: under
    DistributedDataParallel train with `ddp_find_unused_parameters=True` (Trainer's default, but not with activation
    checkpointing).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     projection_dim=6)
        >>> model = DualEncoderForImageTextRetrieval(config)
        >>> output = model(input_ids=torch.ones(5, 4, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8))
        >>> output.logits_per_image.shape, output.text_embeds.norm(dim=-1).allclose(torch.ones(5))
        (torch.Size([3, 5]), True)
    """

    def add_head(self, config: DualEncoderConfig) -> None:
        """Build the projections, and behind interaction layers the score of a pair."""
        super().add_head(config)
        if config.interaction_layers:
            self.rank_output = nn.Linear(config.hidden_size, 1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode texts `(B, T)` for a search: projections of length 1, `(B, P)` float32."""
        return normalize(self.get_text_features(input_ids, attention_mask).pooler_output.float(), dim=-1)

    def embed_images(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Encode images `(B, 3, H, W)` or `(B, 1, 3, H, W)` for a search: projections of length 1, `(B, P)` float32."""
        check_one_image(pixel_values, None, "images are ranked one by one")
        return normalize(self.get_image_features(pixel_values, pixel_mask).pooler_output.float(), dim=-1).flatten(1)

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as transformers does, with what lets sentence-transformers load the folder."""
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        for name, content in SENTENCE_TRANSFORMERS.items() if is_main_process else ():
            Path(save_directory, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def match_scores(self, **inputs: Any) -> Tensor:
        """Say how well a text fits each image of its row, which its tokens read: `(B, N)`, higher fits better.

        Args:
            **inputs: as in `DualEncoderModel.forward`: `image_token_embeds` in place of pixels, one text for all images
                or one image for all texts.

        Raises:
            ValueError: the model has no interaction layers.
        """
        if not self.config.interaction_layers:
            raise ValueError("match_scores needs interaction layers, of which this model has none; take the cosines.")
        return self.rank_output(self.dual_encoder(**inputs, return_dict=True).pooler_output).squeeze(-1)

    @returns_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        caption_ids: Tensor | None = None,
        return_loss: bool | None = None,
        num_listed: int = 0,
        output_query_states: AskedLayers = None,
        output_key_states: AskedLayers = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DualEncoderForImageTextRetrievalOutput:
        """Hold every text against every image.

        Args:
            input_ids: `(texts, T)`.
            attention_mask: `(texts, T)`.
            pixel_values: `(images, 3, H, W)` or `(images, 1, 3, H, W)`; as many as texts only for a loss or recorded
                states.
            pixel_mask: `(images, H, W)` or `(images, 1, H, W)`.
            token_type_ids: `(texts, T)`.
            image_ids: `(B,)` int64, equal for equal images. With `caption_ids`, asks for the loss, in which no pair
                that is known to fit is a negative; text i belongs to image i, negatives come from all processes.
            caption_ids: `(B,)` int64, equal for equal captions.
            return_loss: True asks for the loss without ids: nothing is known to be there twice.
            num_listed: beside a loss, how many hard negatives of each text and image are listed and scored.
            output_query_states: True or a list of layers; text i is then paired with image i.
            output_key_states: likewise.
            join_states: as in `DualEncoderModel.forward`.
            **kwargs: as in `DualEncoderModel.forward`.

        Returns:
            A `DualEncoderForImageTextRetrievalOutput`.

        Raises:
            ValueError: a side is missing, rows have more than one image, or texts and images are to be paired and
                differ in number.
        """
        for name, given in (("input_ids", input_ids), ("pixel_values", pixel_values)):
            if given is None:
                alone = "get_text_features or get_image_features"
                raise ValueError(f"{name} is missing; give both, or encode one side by {alone}.")
        check_one_image(pixel_values, None, "images are ranked one by one")
        check_pair_ids(image_ids, caption_ids)
        layers, named = self.dual_encoder.layers_to_record(output_query_states, output_key_states)
        wants_loss = return_loss or image_ids is not None
        if (wants_loss or layers) and len(input_ids) != len(pixel_values):
            given = f"{len(input_ids)} texts and {len(pixel_values)} images"
            raise ValueError(f"there are {given}; a loss and states need pairs.")

        body = self.dual_encoder
        text_output = body.text_model(input_ids, attention_mask, token_type_ids, recorded_layers=named, **kwargs)
        vision_output = body.vision_model(pixel_values, pixel_mask, recorded_layers=named, **kwargs)
        texts, images = self.project_features(text_output.pooler_output, vision_output.pooler_output)
        with torch.autocast(texts.device.type, enabled=False):
            logits_per_text = texts @ images.T * inverse_temperature(self.logit_scale)

        loss, lists = None, {}
        if wants_loss:
            if image_ids is None or caption_ids is None:
                image_ids = caption_ids = unlike_ids(len(texts), texts.device)
            ids = gather_pair_ids(image_ids, caption_ids)
            similarities = pair_similarities(texts, images, self.logit_scale)
            loss = itc_loss(*similarities, ids)
            if num_listed:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                lists = self._lists(similarities, ids, num_listed, text_output, vision_output, mask)

        wanted = (output_query_states, output_key_states)
        output = EncoderOutput(
            text_pooler_output=text_output.pooler_output,
            image_pooler_output=vision_output.pooler_output,
            image_mask=vision_output.image_mask[:, None],
            text_model_output=text_output,
            vision_model_output=vision_output,
            **body.recorded_states(layers, text_output, vision_output, wanted, join_states),
        )
        logits = {"logits_per_image": logits_per_text.T, "logits_per_text": logits_per_text}
        embeds = {"text_embeds": texts, "image_embeds": images}
        return DualEncoderForImageTextRetrievalOutput(loss=loss, **logits, **embeds, **lists, **shared_fields(output))

    def _lists(self, similarities: Any, ids: PairIds, count: int, texts: Any, vision: Any, mask: Tensor) -> Any:
        """The hardest negatives of each text and image, and the scores of the lists that they make."""
        rows, is_listed = choose_lists(similarities, ids, count)
        lists = {"listed_images": rows[0], "listed_texts": rows[1], "is_listed": is_listed}
        lists["list_scores"] = listed_scores(similarities, ids, rows)
        if not self.config.interaction_layers:
            return lists

        def score(of_text: Tensor, of_image: Tensor) -> Tensor:
            return self.rank_output(self.fuse_rows(texts, vision, mask, of_text, of_image))[:, 0]

        return lists | {"list_match_scores": scored_lists(ids, rows, score)}


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

    def add_head(self, config: DualEncoderConfig) -> None:
        """Build the projections, and the heads of matching and of words."""
        super().add_head(config)
        self.itm_score = matching_head(config.hidden_size)
        self.mlm_score = masked_word_head(config.joint_config)
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"mlm_score.decoder.weight": f"{name}.weight"}

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
        if similarities is None:
            # Nothing trains them: all alike.
            similarities = (torch.zeros(ids.num_rows, len(ids.image_ids), device=ids.image_ids.device),) * 2
        image_rows = hard_negatives(similarities[0], ids)
        text_rows = hard_negatives(similarities[1], ids, texts_ask=False)

        # The rows of all processes, and of them each pair's text and image.
        given = inputs["attention_mask"]
        mask = torch.ones_like(inputs["input_ids"]) if given is None else given
        of_text = torch.cat([ids.own_rows, text_rows.clamp(min=0)])
        of_image = torch.cat([image_rows.clamp(min=0), ids.own_rows])
        fused = self.fuse_rows(output.text_model_output, output.vision_model_output, mask, of_text, of_image)
        return (image_rows, text_rows), fused

    def masked_word_states(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """Fuse every token of the masked text with the pooled image."""
        body = self.dual_encoder
        text = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        masked = body.text_model(**text, return_dict=True)
        if body.interaction_model is not None:
            tokens = output.vision_model_output.last_hidden_state[:, None]
            images = {"image_token_embeds": tokens, "image_token_mask": output.image_mask}
            mask = inputs["attention_mask"]
            masked = body.interaction_model(masked.last_hidden_state, mask, **images, return_dict=True)
        image = body.project_images(output.image_pooler_output[:, 0])[:, None]
        return body.fuse_projections(body.project_text(masked.last_hidden_state), image)
