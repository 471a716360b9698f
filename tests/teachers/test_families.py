"""Every family of teachers, tiny and random: what is shown is the model's own attention, at the right words and boxes.

The oracle is what the attention modules return when the model attends eagerly, cut by hand.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BitsAndBytesConfig, CLIPConfig, GitConfig, GitForCausalLM, PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE
from worlds.tiny_teachers import TEACHERS, VISION, save_teacher, tiny_teacher, word_tokenizer

from dual_distill.modeling import record_attention
from dual_distill.teachers import FAMILIES, caption_images, family_of, load_teacher
from dual_distill.teachers.answers import answer_logits, answer_tokens, yes_scores
from dual_distill.teachers.foreign import run_recorded
from dual_distill.teachers.layout import LAYOUT, as_view, image_layout, joint_attention, patch_boxes, text_layout
from dual_distill.teachers.prompts import Prompt, read_template

TEXTS = ["two dogs on a red sofa", "what is it?"]
REGIONS = ("lxmert", "visual_bert")
BOTH_WAYS = ("modernvbert", "paligemma", "florence2", "visual_bert", "flava", "bridgetower", "lxmert", "fusion")
CAUSAL = ("smolvlm", "idefics3", "qwen2_5_vl", "qwen3_vl", "llava", "llava_onevision", "gemma3", "internvl")
Q_FORMERS = ("blip2", "instructblip")
# One or two of each family always; the rest of the table is slow in sum.
FIRST = ("smolvlm", "qwen3_vl", "modernvbert", "blip", "blip2", "fusion")


def each(*names):
    return [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in names]


def pictures(sizes=((90, 60), (40, 64)), seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def regions(count=2):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 5, 2, generator=generator) / 2
    boxes = torch.cat([corners, corners + 0.5], dim=-1)
    return [{"features": torch.randn(5, 24, generator=generator), "boxes": each} for each in boxes]


def batch_of(name, texts=TEXTS, images=None, **options):
    model, processor = tiny_teacher(name, **options)
    images = images or (regions(len(texts)) if name in REGIONS else pictures())
    return model, processor, family_of(model.config).inputs(model.config, processor, images, texts)


def shown(name, wanted=(-1,), **options):
    model, processor, batch = batch_of(name)
    return model, batch, family_of(model.config).view(model, processor, batch, wanted, **options)


def eager_probs(model, batch, modules):
    """What attention modules return beside their output under eager attention, in the order of their calls."""
    found, read = [], {name: tensor for name, tensor in batch.items() if name not in LAYOUT}
    model.set_attn_implementation("eager")
    hooks = []
    for module in map(model.get_submodule, modules):
        if type(module).__name__.startswith(("Blip2", "InstructBlip", "BridgeTower")) or not hasattr(module, "query"):
            hooks.append(module.register_forward_hook(lambda _, __, output: found.append(output[1])))
        else:
            # Attention of its own: probabilities are what its dropout gets.
            hooks.append(module.dropout.register_forward_hook(lambda _, given, __: found.append(given[0])))
    kind = type(model).__name__
    if kind == "BlipForQuestionAnswering" or "Florence2" in kind:
        read["decoder_input_ids"] = read["input_ids"][:, :1]
    extra = {"use_image_text_matching_head": True} if kind == "Blip2ForImageTextRetrieval" else {}
    with torch.no_grad():
        model(**read, **extra)
    [hook.remove() for hook in hooks]
    return found


def cut(probs, rows, columns, mask):
    """The block of `probs` at these rows and columns `(B, N)`, rescaled over the columns of `mask`."""
    picked = torch.stack([each[:, row][:, :, column] for each, row, column in zip(probs, rows, columns, strict=True)])
    picked = picked * mask[:, None, None]
    return picked / picked.sum(-1, keepdim=True)


def assert_same(found, expected, query_mask):
    real = query_mask[:, None, :, None].expand(found.shape)
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", each(*(name for name in TEACHERS if name not in Q_FORMERS)))
def test_recorded_is_eager(name):
    model, batch, view = shown(name)
    family = family_of(model.config)
    text, image = batch["text_index"], batch["image_index"]
    if name == "fusion":
        model.set_attn_implementation("eager")
        read = {key: value for key, value in batch.items() if key not in LAYOUT}
        with torch.no_grad():
            found = [model(**read, output_attentions=True).attentions[-1]]
        image = image + text.shape[1]
    else:
        found = eager_probs(model, batch, family.layers(model)[-1])
    is_joint = len(found) == 1 and name not in ("blip", "blip_vqa")

    expected = cut(found[0], text, image, view.image_mask)
    assert_same(view.attention_probs(0, "text_to_image"), expected, view.text_mask)
    if name in BOTH_WAYS:
        expected = cut(found[0 if is_joint else 1], image, text, view.text_mask)
        assert_same(view.attention_probs(0, "image_to_text"), expected, view.image_mask)


@pytest.mark.parametrize("name", each(*Q_FORMERS))
def test_two_hops_are_eager(name):
    model, batch, view = shown(name)
    # A layer's cross-attention runs before the self-attention of the next one.
    queries, words = eager_probs(model, batch, family_of(model.config).layers(model)[-1])
    words = words[:, :, 6:, :6] / words[:, :, 6:, :6].sum(-1, keepdim=True)
    assert_same(view.attention_probs(0, "text_to_image"), words @ queries, view.text_mask)
    assert view.attention_probs(0, "image_to_text") is None


@pytest.mark.parametrize("name", each(*TEACHERS))
def test_rows_sum_to_one_in_the_directions_that_the_family_has(name):
    _, _, view = shown(name, wanted=(0, -1))
    assert len(view.layers) == 2
    for direction, queries in (("text_to_image", view.text_mask), ("image_to_text", view.image_mask)):
        probs = view.attention_probs(1, direction)
        assert (probs is not None) == (direction == "text_to_image" or name in BOTH_WAYS)
        if probs is not None:
            sums = probs.sum(-1).transpose(1, 2)[queries]
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", each(*TEACHERS))
def test_spans_spell_the_text_and_say_nothing_of_what_stands_around_it(name):
    texts = ["  two dogs on a red sofa", "Dogs! What is it?"]
    _, _, batch = batch_of(name, texts)
    for text, spans, mask in zip(texts, batch["text_spans"].tolist(), batch["text_mask"].tolist(), strict=True):
        pieces = [text[start:end] for start, end in spans]
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(is_real or not piece for piece, is_real in zip(pieces, mask, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TEACHERS if name not in REGIONS])
@pytest.mark.parametrize("size", [(96, 64), (48, 96)])
def test_boxes_are_where_the_tokens_look(name, size):
    """Where a spot of the image changes, what changes most are the tokens whose boxes hold it."""
    # Convolutions see further than their box, so their spots are in the corners; crops have no corners.
    near, far = (0.1, 0.86) if name == "florence2" else (0.33, 0.63)
    spots, (width, height) = [(x, y) for x in (near, far) for y in (near + 0.04, far + 0.04)], size
    images = [Image.new("RGB", size, (120, 120, 120)) for _ in range(1 + len(spots))]
    for image, (x, y) in zip(images[1:], spots, strict=True):
        edges = ((x - 0.05) * width, (y - 0.05) * height, (x + 0.05) * width, (y + 0.05) * height)
        image.paste((250, 10, 60), tuple(round(edge) for edge in edges))
    model, _, batch = batch_of(name, ["two dogs"] * len(images), images, noise=0.0)
    read = {key: value for key, value in batch.items() if key not in LAYOUT}
    with torch.no_grad():  # a vision tower that mixes its tokens says less of where they stand
        [weight.zero_() for part, weight in model.named_parameters() if "vision" in part and "out_proj" in part]
        [weight.normal_() for part, weight in model.named_parameters() if "mm_input_projection" in part]  # zeros

    # Image tokens as the first layer gets them.
    if name == "fusion":
        with torch.no_grad():
            keys = model(**read, output_key_states=[0]).key_states[0][:, :, batch["input_ids"].shape[1] :]
    else:
        first = (
            family_of(model.config).layers(model)[0][-1 if name in Q_FORMERS else 0].replace("layers.1.", "layers.0.")
        )
        with torch.no_grad(), record_attention(model, [first]) as recorded:
            extra = {"decoder_input_ids": read["input_ids"][:, :1]} if name in ("florence2", "blip_vqa") else {}
            extra |= {"use_image_text_matching_head": True} if name == "blip2" else {}
            model(**read, **extra)
        keys = recorded[first].keys
        if name not in ("blip", "blip_vqa", "bridgetower", *Q_FORMERS):
            index = batch["image_index"][:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
            keys = keys.gather(2, index)
    changes = (keys[1:] - keys[:1]).square().sum((1, 3))

    boxes, mask = batch["image_boxes"][0], batch["image_mask"][0]
    is_part = mask & ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) < 0.5)
    assert is_part.any()
    for (x, y), change in zip(spots, changes, strict=True):
        x0, y0, x1, y1 = boxes[change.masked_fill(~is_part, -1).argmax()]
        assert x0 - 0.06 <= x <= x1 + 0.06
        assert y0 - 0.06 <= y <= y1 + 0.06


@pytest.mark.parametrize(
    "name", each(*CAUSAL, "modernvbert", "paligemma", "florence2", "blip", "bridgetower", *Q_FORMERS, "flava", "fusion")
)
def test_a_row_alone_shows_what_it_shows_in_a_batch(name):
    model, processor, batch = batch_of(name)
    family = family_of(model.config)
    together = family.view(model, processor, batch, [-1])
    alone_batch = family.inputs(model.config, processor, pictures()[1:], TEXTS[1:])
    alone = family.view(model, processor, alone_batch, [-1])
    words = int(alone.text_mask.sum())
    in_batch = together.attention_probs(0, "text_to_image")[1][:, :words][..., together.image_mask[1]]
    found = alone.attention_probs(0, "text_to_image")[0][:, :words][..., alone.image_mask[0]]
    torch.testing.assert_close(in_batch, found, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.text_spans[1, :words], alone.text_spans[0, :words])
    boxes = together.image_boxes[1][together.image_mask[1]]
    torch.testing.assert_close(boxes, alone.image_boxes[0][alone.image_mask[0]])


@pytest.mark.parametrize("name", each("blip", "flava", "lxmert", "visual_bert"))
def test_a_model_of_half_precision_is_shown_its_batch(name):
    model, processor, batch = batch_of(name)
    view = family_of(model.config).view
    whole = view(model, processor, batch, [-1]).attention_probs(0, "text_to_image")
    half = view(model.to(torch.bfloat16), processor, batch, [-1]).attention_probs(0, "text_to_image")
    assert 0 < (half - whole)[batch["text_mask"].bool()[:, None].expand(half.shape[:3])].abs().mean() < 0.05


ANSWERS = ["yes", "two dogs", "no", "a red sofa"]


@pytest.mark.parametrize("name", each(*CAUSAL, "paligemma"))
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_an_answer_is_as_probable_as_the_prompt_that_holds_it_says(name, length):
    model, processor, batch = batch_of(name)
    view = family_of(model.config).view(model, processor, batch, [-1], ANSWERS, length=length, chunk_size=3)
    assert view.logits.shape == (2, 4)

    tokenizer, read = processor.tokenizer, {key: value for key, value in batch.items() if key not in LAYOUT}
    end = tokenizer.eos_token if name == "paligemma" else read_template(processor).after_answer
    for column, answer in enumerate(ANSWERS):
        ids = torch.tensor(tokenizer(answer + end, add_special_tokens=False)["input_ids"]).repeat(2, 1)
        longer = dict(read)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            if key in read:
                added = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.get(key, torch.zeros_like(ids))
                added = torch.ones_like(ids) if name == "paligemma" and key == "token_type_ids" else added
                longer[key] = torch.cat([read[key], added], dim=1)
        longer.pop("labels", None)
        with torch.no_grad():
            logits = model(**longer).logits[:, -ids.shape[1] - 1 : -1].log_softmax(-1)
        expected = logits.gather(-1, ids[..., None]).sum((1, 2)) / (ids.shape[1] if length == "mean" else 1)
        torch.testing.assert_close(view.logits[:, column], expected, atol=1e-3, rtol=1e-4)


def test_an_answer_follows_the_blank_that_smolvlms_own_template_puts_before_it():
    model, processor = tiny_teacher("smolvlm")
    processor.chat_template = DEFAULT_CHAT_TEMPLATE  # asks up to "Assistant:", and its turns are "Assistant: red"
    family, images = family_of(model.config), pictures()[:1]
    batch = family.inputs(model.config, processor, images, ["what is it?"])
    found = family.view(model, processor, batch, [-1], ANSWERS).logits[0]

    # The whole conversation, as the model is trained on it.
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    for answer, score in zip(ANSWERS, found, strict=True):
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        written = processor.apply_chat_template([*asked, said]).rstrip()
        assert written.endswith(f"Assistant: {answer}<end_of_utterance>")
        read = processor(text=[written], images=[images], return_tensors="pt")
        ids, start = read["input_ids"][0], batch["input_ids"].shape[1]
        assert ids[:start].tolist() == batch["input_ids"][0].tolist()
        with torch.no_grad():
            logits = model(**read).logits[0, start - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(score, logits.gather(-1, ids[start:, None]).sum(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["smolvlm", "blip"])
def test_padding_is_masked_where_the_tokenizer_names_its_ids_alone(name):
    model, processor = tiny_teacher(name)
    expected = family_of(model.config).inputs(model.config, processor, pictures(), TEXTS)
    processor.tokenizer.model_input_names = ["input_ids"]
    found = family_of(model.config).inputs(model.config, processor, pictures(), TEXTS)
    assert found["attention_mask"].tolist() == expected["attention_mask"].tolist()


@pytest.mark.parametrize("name", ["gemma3", "idefics3"])
def test_a_prompt_begins_as_often_as_its_template_says(name):
    model, processor = tiny_teacher(name)
    tokenizer, image = processor.tokenizer, pictures()[0]
    begins = processors.TemplateProcessing("<s> $A", None, [("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins

    # The template writes <s>, and so does the tokenizer: transformers' own call lets one of them.
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    own = processor.apply_chat_template([{"role": "user", "content": content}], **options)["input_ids"]
    batch = family_of(model.config).inputs(model.config, processor, [image], ["what is it?"])
    assert batch["input_ids"].tolist() == own.tolist()
    assert (own == tokenizer.bos_token_id).sum() == 1

    # Without one in the template it is the tokenizer's.
    processor.chat_template = processor.chat_template.removeprefix("{{ bos_token }}")
    again = family_of(model.config).inputs(model.config, processor, [image], ["what is it?"])
    assert again["input_ids"].tolist() == own.tolist()


def test_a_thought_that_a_template_closes_before_each_answer_is_part_of_the_prompt():
    model, processor = tiny_teacher("qwen3_vl")
    # A model that thinks is asked up to "<think>", and its turns hold a thought, here an empty one.
    processor.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{% if m.role == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    family, images = family_of(model.config), pictures()[:1]
    batch = family.inputs(model.config, processor, images, ["what is it?"])
    asked = processor.tokenizer.decode(batch["input_ids"][0])
    assert asked.endswith("what is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert [("what is it?"[a:b]) for a, b in batch["text_spans"][0].tolist()][-1] == "?"

    # Answers are told apart by their own first token, and a reranker by that of "yes" and "no".
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key not in LAYOUT}).logits[0, -1]
    first = [processor.tokenizer(answer)["input_ids"][0] for answer in ANSWERS]
    short = family.view(model, processor, batch, [-1], ANSWERS, best=1).logits[0]
    assert short.isfinite().tolist() == (logits[first] == logits[first].max()).tolist()
    match = family.view(model, processor, batch, [-1], **family.MATCH_VIEW).match_scores
    torch.testing.assert_close(match[0], logits[first[0]] - logits[first[2]], atol=1e-4, rtol=0)


def test_a_turn_that_does_not_begin_with_the_prompt_leaves_nothing_between():
    _, processor = tiny_teacher("smolvlm")
    # LLaVA-OneVision: "assistant" and a line break where it asks, "assistant" and a blank in a turn.
    processor.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for c in m.content %}{{ '<image>' if c.type == 'image' else '\n' + "
        "c.text }}{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    assert read_template(processor) == ("user <image>\n", "</s>assistant\n", "", "</s>")


def test_tokens_of_an_answer_are_those_behind_its_prompt():
    # Llama's tokenizer marks where a word begins, and the beginning of a text as well.
    words = ["<unk>", "▁", "▁USER:", "▁what", "▁ASSISTANT:", "▁red", "red", "▁yes", "▁no", "</s>"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    prompt = Prompt("USER: ", " ASSISTANT:", " ", "</s>")

    tokens, real = answer_tokens(tokenizer, ["red"], prompt, torch.device("cpu"))
    assert tokenizer.convert_ids_to_tokens(tokens[0]) == ["▁red", "</s>"]
    assert real.tolist() == [[1, 1]]
    logits = torch.arange(10.0).square().repeat(1, 1, 1)
    assert yes_scores(tokenizer, logits, prompt=prompt).tolist() == [49.0 - 64.0]
    with pytest.raises(ValueError, match="'yes' and 'yes' begin with the same token, which tells nothing"):
        yes_scores(tokenizer, logits, "yes", "yes", prompt)


def test_a_short_list_scores_the_best_by_first_token_and_what_is_kept():
    model, processor, batch = batch_of("smolvlm")
    view = family_of(model.config).view
    every = view(model, processor, batch, [-1], ANSWERS).logits
    keep = torch.tensor([[3], [0]])
    short = view(model, processor, batch, [-1], ANSWERS, best=1, keep=keep).logits
    scored = short.isfinite()
    assert scored.sum(1).tolist() == [2, 2]
    assert scored.gather(1, keep).all()
    torch.testing.assert_close(short[scored], every[scored])
    assert view(model, processor, batch, [-1], ANSWERS, best=9).logits.isfinite().all()


def test_blip_writes_answers_as_its_loss_says():
    model, processor, batch = batch_of("blip_vqa")
    logits = family_of(model.config).view(model, processor, batch, [-1], ANSWERS).logits
    read = {key: value for key, value in batch.items() if key not in LAYOUT}
    for column, answer in enumerate(ANSWERS):
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[model.config.text_config.bos_token_id, *ids, processor.tokenizer.sep_token_id]] * 2)
        for row in range(2):
            one = {key: value[row : row + 1] for key, value in read.items()}
            with torch.no_grad():
                seen = model.vision_model(pixel_values=one["pixel_values"]).last_hidden_state
                asked = model.text_encoder(
                    input_ids=one["input_ids"], attention_mask=one["attention_mask"], encoder_hidden_states=seen
                ).last_hidden_state
                written = model.text_decoder(
                    input_ids=ids[:1], encoder_hidden_states=asked, encoder_attention_mask=one["attention_mask"]
                ).logits.log_softmax(-1)
            expected = written[0, :-1].gather(-1, ids[0, 1:, None]).sum()
            torch.testing.assert_close(logits[row, column], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", each("fusion", "lxmert", "visual_bert"))
def test_a_classifiers_logits_are_found_by_name(name):
    _, _, view = shown(name)
    _, _, asked = shown(name, answers=["red", "yes"])
    torch.testing.assert_close(asked.logits, view.logits[:, [2, 0]])
    with pytest.raises(ValueError, match="1 of 2 answers are none of the teacher's, such as 'blue'; leave them out"):
        shown(name, answers=["red", "blue"])


@pytest.mark.parametrize("name", each("smolvlm", "qwen3_vl"))
def test_captions_are_what_the_model_writes_behind_its_own_template(name):
    model, processor = tiny_teacher(name)
    images, request = pictures(), "two dogs on a red sofa?"
    written = caption_images(model, processor, images, request, max_new_tokens=5)
    for image, caption in zip(images, written, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": request}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        read = processor(text=[prompt], images=[[image]], return_tensors="pt")
        tokens = model.generate(**read, max_new_tokens=5, do_sample=False)[0, read["input_ids"].shape[1] :]
        assert caption == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() != ""


@pytest.mark.parametrize("name", each("blip", "bridgetower", "blip2"))
def test_a_matching_head_gives_a_probability(name):
    _, _, view = shown(name)
    assert view.match_probs.shape == (2,)
    assert ((view.match_probs > 0) & (view.match_probs < 1)).all()
    assert view.logits is None
    with pytest.raises(ValueError, match="says nothing about answers; set soft_label_weight to 0"):
        shown(name, answers=["yes"])


def test_a_reranker_says_yes_or_no_in_the_form_of_qwens():
    model, processor = tiny_teacher("qwen3_vl")
    family = family_of(model.config)
    batch = family.inputs(model.config, processor, pictures(), TEXTS, **family.MATCH_INPUTS)
    view = family.view(model, processor, batch, [-1], **family.MATCH_VIEW)
    assert "dogs" in [TEXTS[0][a:b] for a, b in batch["text_spans"][0].tolist()]

    # The prompt: a system's sentence, what is asked, the image as query, and the text as document.
    prompt = processor.tokenizer.decode(batch["input_ids"][0])
    judge, _, rest = prompt.partition('the answer can only be "yes" or "no".')
    query, _, document = rest.partition("<|image_pad|>")
    assert "system: Judge whether the Document meets the requirements" in judge
    assert query.partition("user: ")[2].startswith("<Instruct>: ")
    assert "<Query>:" in query
    assert document.rpartition("<|image_pad|>")[2].split("<Document>:")[1].startswith(TEXTS[0])
    assert document.endswith("assistant: ")

    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key not in LAYOUT}).logits[:, -1]
    yes, no = (processor.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    torch.testing.assert_close(view.match_scores, logits[:, yes] - logits[:, no], atol=1e-4, rtol=0)
    torch.testing.assert_close(view.match_probs, view.match_scores.sigmoid(), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["smolvlm", "blip2", "lxmert"])
def test_a_layer_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=r"has \d layers in which text and image meet, but layers is \[7\]"):
        shown(name, wanted=[7])


def test_a_template_without_the_image_before_the_text_is_refused():
    _, processor = tiny_teacher("smolvlm")
    processor.chat_template = "{{ messages[0].content[1].text }}<image>"
    with pytest.raises(ValueError, match=r"the chat template has no <image> before the text; give one that has"):
        read_template(processor)


def test_a_text_without_tokens_and_a_tokenizer_without_offsets_are_refused():
    model, processor = tiny_teacher("smolvlm")
    with pytest.raises(ValueError, match=r"a text has no token of its own; give texts that are not empty"):
        family_of(model.config).inputs(model.config, processor, pictures(), ["two dogs", ""])

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not say which characters a token covers"):
        text_layout(Slow(), TEXTS)


def test_answers_need_tokens():
    model, processor, batch = batch_of("smolvlm")
    with pytest.raises(ValueError, match=r"2 answers, of which one or more have no token"):
        answer_logits(
            model,
            processor.tokenizer,
            batch["attention_mask"],
            model(**{key: value for key, value in batch.items() if key not in LAYOUT}),
            ["yes", ""],
        )


@pytest.mark.parametrize("name", each("smolvlm", "blip2", "flava", "instructblip"))
def test_a_teacher_is_loaded_by_its_name(name, tmp_path):
    model, processor = load_teacher(save_teacher(name, tmp_path))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    family = family_of(model.config)
    view = family.view(model, processor, family.inputs(model.config, processor, pictures(), TEXTS), [-1])
    _, _, expected = shown(name)
    found, expected = (each.attention_probs(0, "text_to_image") for each in (view, expected))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    model, processor = tiny_teacher("blip")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("itm_head")}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 2 weights of BlipForImageTextRetrieval, such as itm_head"):
        load_teacher(tmp_path)


def test_a_type_of_no_family_is_refused_with_the_list(tmp_path):
    with pytest.raises(
        ValueError, match=r"no teacher family knows models of type 'git', but .*smolvlm.*; write its load"
    ):
        family_of(GitConfig())
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"knows models of type 'clip', but .*; a model whose .* can be a tower"):
        load_teacher(tmp_path)


class Git:
    """A family that a user writes: GIT reads its patches and then the text, which looks at all of them."""

    @staticmethod
    def load(checkpoint, revision=None, **options):
        return GitForCausalLM.from_pretrained(checkpoint, revision=revision, **options), word_tokenizer()

    @staticmethod
    def inputs(config, processor, images, texts):
        batch, layout = text_layout(processor, texts)
        batch.pop("token_type_ids", None)
        pixels = torch.stack([torch.tensor(np.array(image.resize((32, 32)))).movedim(-1, 0) / 255 for image in images])
        boxes = patch_boxes(None, images, pixels, config.vision_config.patch_size)
        layout["text_index"] = layout["text_index"] + len(boxes[0])
        return batch | layout | image_layout(boxes) | {"pixel_values": pixels}

    @staticmethod
    def layers(model):
        return [(f"git.encoder.layer.{index}.attention.self",) for index in range(model.config.num_hidden_layers)]

    @staticmethod
    def view(model, processor, batch, wanted, answers=None):
        read = {name: tensor for name, tensor in batch.items() if name not in LAYOUT}
        _, recorded = run_recorded(model, read, Git.layers(model), wanted)
        return as_view(batch, [joint_attention(attention, batch, causal=True) for [attention] in recorded])


def test_a_user_adds_a_family(tmp_path, monkeypatch):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    GitForCausalLM(GitConfig(vision_config=VISION, **shape, vocab_size=40)).save_pretrained(tmp_path)
    monkeypatch.setitem(FAMILIES, "git", Git)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "git"
    model, processor = load_teacher(tmp_path)
    batch = Git.inputs(model.config, processor, pictures(), TEXTS)
    view = family_of(model.config).view(model, processor, batch, [-1])
    found = view.attention_probs(0, "text_to_image")
    assert found.shape == (2, 4, 8, 17)
    [attention] = eager_probs(model, batch, Git.layers(model)[-1])
    assert_same(found, cut(attention, batch["text_index"], batch["image_index"], view.image_mask), view.text_mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm", "blip"])
def test_a_teacher_in_8_bit_shows_nearly_the_same(name, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = save_teacher(name, tmp_path)
    shown = []
    for options in ({}, {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}):
        model, processor = load_teacher(folder, **options)[:2]
        assert any("8bit" in type(part).__name__ for part in model.modules()) == bool(options)
        family = family_of(model.config)
        batch = family.inputs(model.config, processor, pictures(), TEXTS)
        shown.append(family.view(model, processor, batch, [-1]).attention_probs(0, "text_to_image"))
    sums = shown[1].sum(-1)
    torch.testing.assert_close(sums[sums > 0.5], torch.ones_like(sums[sums > 0.5]), atol=1e-5, rtol=0)
    assert 0 < (shown[0] - shown[1]).abs().max() < 0.1
