"""Tiny random teachers of every family with processors made offline: what tests, docs and benchmarks look at.

`tiny_teacher("smolvlm")` gives model and processor; `save_teacher("smolvlm", folder)` what `load_teacher` reads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8}
WORDS = ["two", "dogs", "on", "a", "red", "sofa", "what", "is", "it", "?", "yes", "no", "cat", "and", "black", "ball"]
SIDE = 32
# A chat template as those of the models are built, with <image> where theirs has its image token.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text | trim }}{% endif %}{% endfor %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer(*specials: str, **named: str) -> t.PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, the kind that causal models have."""
    tokens = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("o", "g"), ("d", "og"), ("dog", "s"), ("Ġ", "t"), ("w", "o"), ("Ġt", "wo"), ("r", "e"), ("Ġ", "re")]
    tokens |= {"".join(merge): len(tokens) + index for index, merge in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"extra_special_tokens": named} if named else {}
    made = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **extra)
    made.add_tokens(list(specials), special_tokens=True)
    return made


def word_tokenizer() -> t.PreTrainedTokenizerFast:
    """A word-piece tokenizer in lower case, the kind that encoders have."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "dog", "##s", "[DEC]"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def _square(kind: Any, **fields: Any) -> Any:
    return kind(size={"height": SIDE, "width": SIDE}, **fields)


def _llama(**fields: Any) -> dict[str, Any]:
    shared = {**SHAPE, "vocab_size": 320, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    return {"model_type": "llama", **shared, **fields}


class _NoVideo:
    """A processor whose videos need torchvision, without them."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)  # type: ignore[call-arg]


def _idefics_processor(template: str | None = TEMPLATE) -> Any:
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = byte_tokenizer("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return t.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)


def smolvlm() -> tuple[Any, Any]:
    """Model and processor of type smolvlm."""
    processor = _idefics_processor()
    shape = {"text_config": _llama(), "vision_config": VISION, "scale_factor": 2}
    config = t.SmolVLMConfig(**shape, image_token_id=processor.image_token_id)
    return t.SmolVLMForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Model and processor of type idefics3."""
    processor = _idefics_processor()
    shape = {"text_config": _llama(), "vision_config": VISION, "scale_factor": 2}
    config = t.Idefics3Config(**shape, image_token_id=processor.image_token_id)
    return t.Idefics3ForConditionalGeneration(config), processor


def modernvbert() -> tuple[Any, Any]:
    """Model and processor of type modernvbert."""
    processor = _idefics_processor()
    text = {"model_type": "modernbert", **SHAPE, "num_hidden_layers": 4, "vocab_size": 320, "local_attention": 8}
    special = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = t.ModernVBertConfig(
        text_config={**text, **special},
        vision_config=vision,
        pixel_shuffle_factor=2,
        image_token_id=processor.image_token_id,
    )
    return t.ModernVBertModel(config), processor


def _qwen(name: str, **vision: Any) -> tuple[Any, Any]:
    placed = "<|vision_start|><|image_pad|><|vision_end|>"
    tokenizer = byte_tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=256, max_pixels=2048)
    processor_class = type(f"{name}Processor", (_NoVideo, getattr(t, f"{name}Processor")), {})
    processor = processor_class(images, tokenizer, TEMPLATE.replace("<image>", placed))
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {**_llama(rope_parameters=rope, head_dim=8)}
    text.pop("model_type")
    vision |= {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
    ids = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, **dict(zip(names, ids, strict=True)))
    return getattr(t, f"{name}ForConditionalGeneration")(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Model and processor of type qwen2_5_vl."""
    return _qwen("Qwen2_5_VL", window_size=16, fullatt_block_indexes=[1])


def qwen3_vl() -> tuple[Any, Any]:
    """Model and processor of type qwen3_vl."""
    return _qwen("Qwen3VL", num_position_embeddings=16, deepstack_visual_indexes=[0])


def llava() -> tuple[Any, Any]:
    """Model and processor of type llava."""
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tokenizer = byte_tokenizer("<image>")
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = t.LlavaProcessor(images, tokenizer, chat_template=TEMPLATE, **options)
    vision = {"model_type": "clip_vision_model", **VISION}
    config = t.LlavaConfig(
        vision_config=vision, text_config=_llama(), image_token_index=processor.image_token_id, vision_feature_layer=-1
    )
    return t.LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """Model and processor of type llava_onevision."""
    tokenizer, pinpoints = byte_tokenizer("<image>", "<video>"), [[32, 64], [64, 32], [64, 64]]
    images = _square(LlavaOnevisionImageProcessorPil, image_grid_pinpoints=pinpoints)
    made = type("LlavaOnevisionProcessor", (t.LlavaOnevisionProcessor,), {"__init__": _llava_onevision_init})
    processor = made(images, tokenizer, TEMPLATE)
    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    ids = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    parts = {"vision_config": vision, "text_config": _llama(), "image_grid_pinpoints": pinpoints}
    placed = {"image_token_index": ids[0], "video_token_index": ids[1]}
    config = t.LlavaOnevisionConfig(**parts, **placed, vision_feature_select_strategy="full", vision_feature_layer=-1)
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _llava_onevision_init(
    self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
) -> None:
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "chat_template": chat_template}
    t.LlavaOnevisionProcessor.__init__(self, image_processor, tokenizer, None, **options)


def gemma3() -> tuple[Any, Any]:
    """Model and processor of type gemma3."""
    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer, images = byte_tokenizer(**tokens), _square(Gemma3ImageProcessorPil)
    template = TEMPLATE.replace("<image>", "<start_of_image>")
    processor = t.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)
    kinds = ["sliding_attention", "full_attention"]
    text = {**_llama(model_type="gemma3_text", head_dim=8, sliding_window=8, layer_types=kinds)}
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, **ids)
    return t.Gemma3ForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """Model and processor of type internvl."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = byte_tokenizer(**named, video_token="<video>")
    images = _square(GotOcr2ImageProcessorPil, crop_to_patches=True, max_patches=4)
    made = type("InternVLProcessor", (t.InternVLProcessor,), {"__init__": _internvl_init})
    processor = made(images, tokenizer, TEMPLATE.replace("<image>", "<IMG_CONTEXT>"))
    config = t.InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
        text_config=_llama(), image_token_id=processor.image_token_id, image_seq_length=4,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


def _internvl_init(
    self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
) -> None:
    options = {"image_seq_length": 4, "chat_template": chat_template}
    t.InternVLProcessor.__init__(self, image_processor, tokenizer, None, **options)


def paligemma(kind: str = "gemma2") -> tuple[Any, Any]:
    """Model and processor of type paligemma."""
    images = _square(SiglipImageProcessorPil)
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(images, byte_tokenizer())
    text = _llama(model_type=kind, head_dim=8, vocab_size=1600, **({"sliding_window": 64} if kind == "gemma2" else {}))
    vision = {"model_type": "siglip_vision_model", **VISION}
    options = {"image_token_index": processor.image_token_id, "projection_dim": 32, "hidden_size": 32}
    config = t.PaliGemmaConfig(text_config=text, vision_config=vision, **options)
    return t.PaliGemmaForConditionalGeneration(config), processor


def florence2() -> tuple[Any, Any]:
    """Model and processor of type florence2."""
    tokenizer = byte_tokenizer(image_token="<image>")
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = t.Florence2Processor(images, tokenizer, num_additional_image_tokens=0)
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers",)}
    layers |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    layers |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    text = {"model_type": "bart", "vocab_size": 320, "d_model": 32, **layers, "max_position_embeddings": 256, **ids}
    vision = {"depths": [1] * 4, "embed_dim": [16, 16, 32, 32], "num_heads": [2] * 4, "num_groups": [2] * 4}
    vision |= {"window_size": 2, "projection_dim": 32, "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2]}
    vision |= {"patch_padding": [3, 1, 1, 1], "patch_prenorm": [False, True, True, True], "drop_path_rate": 0.0}
    config = t.Florence2Config(text_config=text, vision_config=vision, image_token_id=processor.image_token_id)
    return t.Florence2ForConditionalGeneration(config), processor


BERT = {**SHAPE, "vocab_size": 100, "max_position_embeddings": 64}


def _blip_config() -> Any:
    ids = {"bos_token_id": 23, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    text = {**BERT, "projection_dim": 32, "encoder_hidden_size": 32, **ids}
    return t.BlipConfig(text_config=text, vision_config=VISION, projection_dim=32, image_text_hidden_size=32)


def blip() -> tuple[Any, Any]:
    """Model and processor of type blip."""
    images = _square(BlipImageProcessorPil)
    return t.BlipForImageTextRetrieval(_blip_config()), t.BlipProcessor(images, word_tokenizer())


def blip_vqa() -> tuple[Any, Any]:
    """Model and processor of type blip_vqa."""
    return t.BlipForQuestionAnswering(_blip_config()), blip()[1]


def bridgetower() -> tuple[Any, Any]:
    """Model and processor of type bridgetower."""
    edge = {"shortest_edge": SIDE}
    images = BridgeTowerImageProcessorPil(size=edge, crop_size=edge, size_divisor=8)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**shape, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 8, "image_size": SIDE}
    config = t.BridgeTowerConfig(**shape, text_config=text, vision_config=vision, contrastive_hidden_size=16)
    return t.BridgeTowerForImageAndTextRetrieval(config), t.BridgeTowerProcessor(images, word_tokenizer())


def lxmert() -> tuple[Any, Any]:
    """Model and processor of type lxmert."""
    layers = {"l_layers": 2, "x_layers": 2, "r_layers": 2, "visual_feat_dim": 24, "num_qa_labels": 3}
    config = t.LxmertConfig(**BERT, **layers)
    config.id2label = {0: "yes", 1: "no", 2: "red"}
    config.label2id = {name: index for index, name in config.id2label.items()}
    return t.LxmertForQuestionAnswering(config), word_tokenizer()


def visual_bert() -> tuple[Any, Any]:
    """Model and processor of type visual_bert."""
    labels = {"id2label": {0: "yes", 1: "no", 2: "red"}, "label2id": {"yes": 0, "no": 1, "red": 2}}
    config = t.VisualBertConfig(**BERT, visual_embedding_dim=24, **labels)
    return t.VisualBertForQuestionAnswering(config), word_tokenizer()


def flava() -> tuple[Any, Any]:
    """Model and processor of type flava."""
    images = _square(FlavaImageProcessorPil, crop_size={"height": SIDE, "width": SIDE}, return_codebook_pixels=False)
    parts = {"text_config": BERT, "image_config": VISION, "multimodal_config": SHAPE, "image_codebook_config": {}}
    config = t.FlavaConfig(**parts, hidden_size=32, projection_dim=32)
    return t.FlavaModel(config), t.FlavaProcessor(images, word_tokenizer())


def _qformer(**fields: Any) -> dict[str, Any]:
    qformer = {**BERT, "num_hidden_layers": 4, "encoder_hidden_size": 32, "cross_attention_frequency": 2, **fields}
    opt = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
    text = {"model_type": "opt", "vocab_size": 320, **opt, "max_position_embeddings": 128}
    return {"vision_config": VISION, "qformer_config": qformer, "text_config": text, "num_query_tokens": 6}


def blip2() -> tuple[Any, Any]:
    """Model and processor of type blip2."""
    processor = t.Blip2Processor(_square(BlipImageProcessorPil), word_tokenizer(), num_query_tokens=6)
    index = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = t.Blip2Config(**_qformer(use_qformer_text_input=True), image_text_hidden_size=16, image_token_index=index)
    return t.Blip2ForImageTextRetrieval(config), processor


def instructblip() -> tuple[Any, Any]:
    """Model and processor of type instructblip."""
    tokenizer = byte_tokenizer()
    processor = t.InstructBlipProcessor(_square(BlipImageProcessorPil), tokenizer, word_tokenizer(), num_query_tokens=6)
    index = tokenizer.convert_tokens_to_ids("<image>")
    return t.InstructBlipForConditionalGeneration(
        t.InstructBlipConfig(**_qformer(), image_token_index=index)
    ), processor


def fusion() -> tuple[Any, Any]:
    """Model and processor of type fusion."""
    from transformers import ViltImageProcessorPil

    from dual_distill import DualDistillProcessor, FusionEncoderConfig, FusionEncoderForQuestionAnswering

    labels = {"id2label": {0: "yes", 1: "no", 2: "red"}, "label2id": {"yes": 0, "no": 1, "red": 2}}
    config = FusionEncoderConfig(**BERT, image_size=SIDE, patch_size=8, **labels)
    images = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=8)
    return FusionEncoderForQuestionAnswering(config), DualDistillProcessor(images, word_tokenizer())


TEACHERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        *(smolvlm, idefics3, modernvbert, qwen2_5_vl, qwen3_vl, llava, llava_onevision, gemma3, internvl, paligemma),
        *(florence2, blip, blip_vqa, bridgetower, lxmert, visual_bert, flava, blip2, instructblip, fusion),
    )
}


def tiny_teacher(name: str, seed: int = 0, noise: float = 0.2) -> tuple[Any, Any]:
    """Model in eval mode, its weights far from those that are alike in every layer, and its processor."""
    torch.manual_seed(seed)
    model, processor = TEACHERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model.eval(), processor


def save_teacher(name: str, folder: Path) -> Path:
    """Save a tiny teacher as `load_teacher` reads it."""
    for part in tiny_teacher(name):
        part.save_pretrained(folder)
    return folder
