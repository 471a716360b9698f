"""transformers' own pipelines on our checkpoints, by the lines that their cards show."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, PreTrainedModel, ViltImageProcessorPil

from dual_distill import modeling
from dual_distill.hub_cards import write_card
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "car", "what", "is", "in", "the", "image", "?"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 16, "patch_size": 8}
TOKENS = {"vocab_size": len(WORDS), "max_position_embeddings": 12}


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(name: str) -> tuple[PreTrainedModel, DualDistillProcessor, dict[str, Any]]:
        """Save a model of a class with its card, and run the card's lines for a pipeline."""
        cls = getattr(modeling, name)
        if cls.config_class is FusionEncoderConfig:
            config = FusionEncoderConfig(**SHAPE, **PIXELS, **TOKENS)
        else:
            config = DualEncoderConfig(vision_config={**SHAPE, **PIXELS}, text_config={**SHAPE, **TOKENS})
        model: PreTrainedModel = cls(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
        processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)
        if hasattr(model, "use_tokens_of"):
            model.use_tokens_of(tokenizer)
        for one in (model, processor):
            one.save_pretrained(tmp_path)
        card = write_card(tmp_path, repo_id=str(tmp_path)[1:]).read_text().replace(str(tmp_path)[1:], str(tmp_path))
        [code] = [block for block in re.findall(r"```python\n(.*?)```", card, re.S) if "pipeline(" in block]
        found: dict[str, Any] = {}
        exec(code, found)
        return model, processor, found

    return save


IMAGE = Image.linear_gradient("L").resize((24, 16)).convert("RGB")


@torch.inference_mode()
def test_a_retriever_classifies_by_labels_and_gives_features_of_images(saved) -> None:
    model, processor, found = saved("DualEncoderForImageTextRetrieval")
    labels = ["a dog", "what is in the image?", "car"]
    answers = found["ask"](IMAGE, candidate_labels=labels, hypothesis_template="{}")
    expected = model(**processor(text=labels), **processor(images=IMAGE)).logits_per_image[0].softmax(-1)
    given = {answer["label"]: answer["score"] for answer in answers}
    torch.testing.assert_close(torch.tensor([given[label] for label in labels]), expected)

    features = torch.tensor(found["see"](IMAGE, pool=True))
    own = model.dual_encoder.get_image_features(**processor(images=IMAGE)).pooler_output[:, 0]
    torch.testing.assert_close(features, own)


@torch.inference_mode()
def test_a_captioner_writes_as_image_text_to_text(saved) -> None:
    model, processor, found = saved("FusionEncoderForCaptioning")
    [answer] = found["ask"](images=IMAGE, text="", max_new_tokens=4)
    written = model.generate(**processor(images=IMAGE), max_new_tokens=4)[0]
    assert answer["generated_text"] == processor.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["DualEncoder", "FusionEncoder"])
def test_a_model_that_answers_has_the_pipeline_of_this_package(saved, family: str) -> None:
    found = saved(f"{family}ForQuestionAnswering")[2]
    assert len(found["ask"](IMAGE, ["what is it?", "a dog?"], top_k=1)) == 2
    assert ("see" in found) == (family == "DualEncoder")
