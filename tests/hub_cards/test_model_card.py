"""Cards of every kind of model: what they say, what they leave out, and what a person wrote in them."""

import ast
import importlib.resources
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, parse_eval_result_entries
from safetensors.numpy import save_file

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    ObjectiveRecord,
    Origin,
    RunRecord,
    Speed,
    read_run,
    write_card,
    write_run,
)
from dual_distill.hub_cards.model_card import choose, parse_card, render_card

PAPER = {
    "method": "cross-modal attention distillation (DiDE)",
    "reference": "Wang et al., EMNLP 2022",
    "url": "https://arxiv.org/abs/2112.08723",
    "bibtex": "@inproceedings{wang2022distilled}",
}
OBJECTIVE = ObjectiveRecord(
    "DiDEObjective", {"attention_weight": 1.0, "soft_label_weight": 1.0, "label_weight": 0.0}, PAPER
)
RUN = RunRecord(
    OBJECTIVE,
    DataOrigin("shop", {"train": 90}, hub_ids=["me/shop"], revision="r1"),
    teacher=Origin("teacher", "sha256:0123456789abcdef", on_hub=False),
    settings={"max_steps": 1500},
    seed=0,
    measurements=(
        Measurement(
            "accuracy", 0.5, "test", "dual-distill evaluate", rows=10, teacher=0.625, text_only=0.375, majority=0.25
        ),
    ),
)


def test_a_score_with_several_editions_names_the_one(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    score = Measurement("vqa_score", 0.5, "validation", "dual-distill evaluate", rows=10, edition="2021")
    write_run(folder, replace(RUN, measurements=(score,)))
    assert read_run(folder).measurements == (score,)
    card = write_card(folder, repo_id="me/student").read_text()
    assert "| vqa score, edition 2021 | validation | 10 | 50.0 % |" in card
    assert "name: vqa score, edition 2021" in card


HOSTILE = "<script>alert(1)</script>`[here](javascript:alert(2))|\n\n# Not ours\n<img src=x onerror=alert(3)>"


def test_a_hostile_record_writes_no_html_and_no_links(make_folder: Callable[..., Path]) -> None:
    """A record may come with somebody else's checkpoint: each of its texts tries, beside those of the configuration."""
    paper = {**dict.fromkeys(PAPER, HOSTILE), "url": "javascript:alert(4)", "bibtex": "@a{b,\n  c}\n```\n<script>"}
    run = RunRecord(
        ObjectiveRecord(HOSTILE, {HOSTILE: 1.0}, paper),
        DataOrigin(HOSTILE, {HOSTILE: 90}, hub_ids=[HOSTILE], revision=HOSTILE, arguments=[HOSTILE]),
        teacher=Origin(HOSTILE, HOSTILE, on_hub=True),
        start=Origin(HOSTILE, HOSTILE, on_hub=False),
        settings={"note": HOSTILE},
        measurements=(Measurement(HOSTILE, 0.5, HOSTILE, HOSTILE, rows=1, groups={HOSTILE: 0.5}),),
        speed=Speed(1.0, 2.0, HOSTILE, HOSTILE),
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        device=HOSTILE,
        model_name=HOSTILE,
        steps=3,
    )
    folder = make_folder()
    write_run(folder, run)
    text = ModelCard(write_card(folder, metadata={"license": HOSTILE}).read_text()).text
    text, _, citation = text.partition("## Citation")
    assert not re.search(r"<(?!!-- dual_distill card)", text)
    assert "](javascript:" not in text
    assert "alert(4)" not in text
    assert not re.search("^# Not ours", text, re.MULTILINE)
    assert text.count("`") % 2 == 0
    # A block of code ends where ours ends it.
    assert citation.strip().startswith("```bibtex\n@a{b,\n  c}\n\n<script>\n```")


def test_a_distilled_dual_encoder_says_what_happened(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    write_run(folder, RUN)
    card = write_card(folder, repo_id="me/student", metadata={"license": "mit"}).read_text()
    for words in (
        "A distilled dual encoder that answers questions about images",
        "8 parameters, 3 text layers and 3 image layers of width 4 with 1 attention head.",
        "8 x 12 pixels in patches of 4",
        "it knows 2 answers",
        "teacher (not on the Hub), weights `sha256:0123456789ab` |",
        "[shop](https://huggingface.co/datasets/me/shop), revision `r1`, 90 train rows",
        "| accuracy | test | 10 | 50.0 % | 62.5 % | 37.5 % | 25.0 % | `dual-distill evaluate` |",
        "`max_steps: 1500`; [run.json](run.json) has them all.",
        "it learned to give the teacher's answers and to look where the teacher looks.",
        "https://arxiv.org/abs/2112.08723",
        "Licence of the weights: mit.",
    ):
        assert words in card
    data = ModelCard(card).data
    assert data.pipeline_tag == "visual-question-answering"
    assert data.datasets == ["me/shop"]
    assert data.base_model is None  # it started from random weights, and its teacher is not on the Hub
    assert {"distillation", "dual-encoder"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_revision) == ("accuracy", 0.5, "r1")


def test_results_on_a_data_set_of_the_hub_are_written_in_its_own_form_too(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    write_run(folder, RUN)
    write_card(folder)
    file = folder / ".eval_results" / "dual_distill.yaml"
    [entry] = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert entry == EvalResultEntry("me/shop", "test_accuracy", 0.5, "r1", notes="accuracy, test, 10 rows")

    # Without one data set of the Hub the results are nobody's.
    for ids in ([], ["me/shop", "me/other"]):
        write_run(folder, replace(RUN, data=replace(RUN.data, hub_ids=ids)))
        write_card(folder)
        assert not file.exists()


def test_results_on_other_data_stand_in_the_table_alone(make_folder: Callable[..., Path]) -> None:
    """No list on the Hub may hold them against the data that the run learned from."""
    folder = make_folder()
    loss = Measurement("loss", 1.5, "validation", "trainer", rows=9)
    other = Measurement("accuracy", 0.25, "validation", "dual-distill evaluate --task gqa", rows=7, task="gqa")
    write_run(folder, replace(RUN, measurements=(loss, other)))
    card = write_card(folder).read_text()
    assert "| accuracy | validation of gqa | 7 | 25.0 % |" in card
    assert [one.metric_type for one in ModelCard(card).data.eval_results] == ["loss"]
    assert "accuracy" not in (folder / ".eval_results" / "dual_distill.yaml").read_text()
    write_run(folder, replace(RUN, measurements=(other,)))
    assert ModelCard(write_card(folder).read_text()).data.eval_results is None
    assert not (folder / ".eval_results" / "dual_distill.yaml").exists()


def test_a_card_says_what_the_run_did_and_no_more(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    objective = ObjectiveRecord("DiDEObjective", {"attention_weight": 0.0, "soft_label_weight": 1, "label_weight": 0.5})
    settings = {
        "attention_weight": 0.0,
        "label_weight": 0.5,
        "hidden_size": 4,
        "seed": 3,
        "max_steps": 7,
        "learning_rate": 0.1,
    }
    measured = Measurement("accuracy", 2 / 3, "test", "dual-distill evaluate", rows=9, text_only=2 / 3)
    write_run(
        folder, replace(RUN, objective=objective, settings=settings, steps=7, teacher=None, measurements=(measured,))
    )
    card = write_card(folder).read_text()
    assert "it learned to give the teacher's answers and from the labels themselves." in card
    assert "from the defaults: `attention_weight: 0.0`, `label_weight: 0.5`, `learning_rate: 0.1`; [run.json]" in card
    # Columns that nobody measured are not there, nor digits that nobody could.
    assert "| metric | split | rows | this model | question only | source |\n|---|---|---|---|---|---|\n" in card
    assert "| accuracy | test | 9 | 66.7 % | 66.7 % | `dual-distill evaluate` |" in card
    [result] = ModelCard(card).data.eval_results
    assert result.metric_value == 0.6667
    assert "In accuracy on test it is no better than a reader that never sees the image" in card
    write_run(folder, RUN)
    assert "no better than a reader" not in write_card(folder).read_text()


def test_a_student_of_distillvlm_cites_its_paper_and_says_what_it_learned(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("FusionEncoderForCaptioning")
    measured = Measurement("cider", 0.8, "test", "dual-distill evaluate", rows=9, teacher=0.95)
    paper = {**PAPER, "url": "https://arxiv.org/abs/2104.02096", "bibtex": "@inproceedings{fang2021compressing}"}
    taught = "to give the teacher's answers and to look where the teacher looks"
    weights = {"soft_label_weight": 1.0, "attention_weight": 1.0, "hidden_weight": 1.0, "label_weight": 0.0}
    for given, learned in (
        ({}, f"{taught} and to have the teacher's hidden states."),
        ({"hidden_weight": 0.0}, f"{taught}."),
        ({"label_weight": 1.0}, f"{taught} and to have the teacher's hidden states and from the labels themselves."),
        ({"hidden_weight": 0.0, "soft_label_weight": 0.0}, "it learned to look where the teacher looks."),
    ):
        objective = ObjectiveRecord("DistillVLMObjective", weights | given, paper)
        write_run(folder, replace(RUN, objective=objective, measurements=(measured,)))
        card = write_card(folder).read_text()
        assert learned in card
    assert "https://arxiv.org/abs/2104.02096" in card
    assert "@inproceedings{fang2021compressing" in card
    assert "2112.08723" not in card
    assert "| cider | test | 9 | 0.8 | 0.95 |" in card  # no share, though it lies below 1
    assert {"distillation", "fusion-encoder"} <= set(ModelCard(card).data.tags)


def test_the_template_is_found_as_an_installed_package_finds_it() -> None:
    template = importlib.resources.files("dual_distill.hub_cards") / "model_card.md.jinja"
    assert template.read_text(encoding="utf-8").count("\n# {{ title }}\n") == 1
    assert (importlib.resources.files("dual_distill") / "py.typed").is_file()


@pytest.mark.parametrize(
    "architecture, tag, words",
    [
        ("FusionEncoderForQuestionAnswering", "visual-question-answering", "A fusion encoder that answers questions"),
        ("DualEncoderForQuestionAnswering", "visual-question-answering", "A dual encoder that answers questions"),
        ("DualEncoderForImagesAndTextClassification", None, "A dual encoder that classifies a sentence about images"),
        ("FusionEncoderForMaskedLM", "fill-mask", "A fusion encoder that fills in masked words"),
        ("FusionEncoderForImageTextRetrieval", None, "A fusion encoder that scores how well"),
        ("FusionEncoderForCaptioning", "image-to-text", "A fusion encoder that writes captions of images"),
        ("DualEncoderModel", None, "without a head for a task"),
    ],
)
def test_every_kind_of_model_has_a_card_without_numbers_it_does_not_know(
    make_folder: Callable[..., Path], architecture: str, tag: str | None, words: str
) -> None:
    card = write_card(make_folder(architecture, num_images=2)).read_text()
    assert words in card
    assert ModelCard(card).data.pipeline_tag == tag
    assert "No evaluation was noted beside these weights" in card
    assert "No licence was given for these weights" in card
    for absent in (
        "More Information Needed",
        "## Results",
        "## Training",
        "## Speed",
        "arxiv",
        "None",
        "Undefined",
        "\n\n\n",
    ):
        assert absent not in card
    if "## Quick start" in card:
        compile(card.split("```python\n")[1].split("```")[0], "quick start", "exec")


def test_a_model_of_regions_says_what_it_reads_and_promises_no_reading_of_images(
    make_folder: Callable[..., Path],
) -> None:
    fields = {"visual_inputs": "regions", "region_feature_size": 1024, "max_regions": 20}
    card = write_card(make_folder("FusionEncoderForCaptioning", **fields)).read_text()
    assert "It reads up to 20 regions an image, each with 1,024 features, and texts of up to 8 tokens." in card
    assert "patches" not in card
    assert "## Quick start" not in card


# What transformers writes into config.json of its own models, which say less, or by other names.
DISTILBERT = {"model_type": "distilbert", "n_layers": 6, "dim": 8, "n_heads": 2, "max_position_embeddings": 512}
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 8, "n_head": 2, "n_positions": 1024}
CONVNEXT = {"model_type": "convnext", "image_size": 64, "patch_size": 4, "hidden_sizes": [8] * 4, "depths": [1] * 4}
RESNET = {"model_type": "resnet", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
VIT = {"model_type": "vit", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
VIT |= {"image_size": 32, "patch_size": 16}


@pytest.mark.parametrize(
    "text, image, words",
    [
        (DISTILBERT, RESNET, "`distilbert` for texts and `resnet` for images. It reads images, and texts of up to 512"),
        (GPT2, CONVNEXT, "`gpt2` for texts and `convnext` for images. It reads images of 64 x 64 pixels, and texts;"),
        (DISTILBERT, VIT, "`vit` for images. It reads images of 32 x 32 pixels in patches of 16, and texts of up to"),
        ({**VIT, "model_type": "bert"}, VIT, "2 text layers and 2 image layers of width 16 with 2 attention heads. It"),
    ],
)
def test_a_student_of_others_towers_has_a_card(
    make_folder: Callable[..., Path], text: dict, image: dict, words: str
) -> None:
    card = write_card(make_folder(text_config=text, vision_config=image)).read_text()
    assert words in " ".join(card.split())
    assert "None" not in card
    assert ("Texts beyond 512 tokens are cut off" in card) == (text is DISTILBERT)
    assert "pipeline(" in card
    assert "image-feature-extraction" not in card  # which takes models of transformers, not a part that holds one
    compile(card.split("```python\n")[1].split("```")[0], "quick start", "exec")


def calls_of(card: str) -> set[str]:
    """Names of what the examples of a card call."""
    trees = [ast.parse(block.split("```")[0]) for block in card.split("```python\n")[1:]]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {getattr(call, "attr", None) or call.id for call in calls}


def test_a_hostile_configuration_or_branch_writes_no_code(make_folder: Callable[..., Path]) -> None:
    """The card of somebody else's checkpoint is copied and run."""
    folder, code = make_folder(), '__import__("os").system("id")'
    expected = calls_of(write_card(folder, repo_id="me/model", revision="v1").read_text())
    config = json.loads((folder / "config.json").read_text())
    for size in (f"32), {code}, (1", [f"32), {code}, (1", 32], [8, 12, 16], {"height": code}):
        config["vision_config"]["image_size"] = size
        (folder / "config.json").write_text(json.dumps(config))
        card = write_card(folder, repo_id="me/model", revision=f'v1"); {code}; print("').read_text()
        assert calls_of(card) == expected
        assert 'Image.new("RGB", (384, 384), "white")' in card
    config["num_images"] = code
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has num_images '__import__.*'; it must be a whole number"):
        write_card(folder)


def test_a_card_of_captions_writes_one(make_folder: Callable[..., Path]) -> None:
    card = write_card(make_folder("FusionEncoderForCaptioning")).read_text()
    assert "written = model.generate(**batch, num_beams=5)" in card
    assert "what is in the image?" not in card


def test_the_code_s_quick_start_needs_no_package(make_folder: Callable[..., Path]) -> None:
    card = write_card(make_folder(), repo_id="me/model", with_code=True).read_text()
    assert "from dual_distill" not in card
    assert "from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor" in card
    assert ModelCard(card).data.library_name == "transformers"


def test_an_architecture_of_a_newer_version_is_refused_and_further_fields_are_not(
    make_folder: Callable[..., Path],
) -> None:
    write_card(make_folder(a_field_of_tomorrow=1))
    with pytest.raises(
        ValueError, match="'DualEncoderForVideos', which this version of dual_distill does not have; update"
    ):
        write_card(make_folder("DualEncoderForVideos"))


def test_hand_written_text_and_metadata_stay_where_they_are(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: de\ntags: [shop]\n---\n# Mine\n")
    first = write_card(folder).read_text()
    assert first.endswith("<!-- dual_distill card ends -->\n\n# Mine\n")
    metadata = yaml.safe_load(first.split("---\n")[1])
    assert (metadata["license"], metadata["language"]) == ("mit", "de")
    assert "shop" in metadata["tags"]
    (folder / "README.md").write_text(
        first.replace("<!-- dual_distill card begins", "Above.\n\n<!-- dual_distill card begins")
    )
    second = write_card(folder).read_text()
    assert parse_card(second).before == "Above."
    assert write_card(folder).read_text() == second


def test_readmes_that_cannot_be_told_apart_are_refused() -> None:
    for readme, message in (
        ("---\na: [1\n---\n", "is no mapping in YAML .*; write `key: value` lines, or delete it"),
        ("---\nlicense: mit\nlicense: other\n---\n", "the key 'license' stands there twice"),
        ("---\n- a\n---\n", "is no mapping in YAML .*; write `key: value` lines, or delete it"),
        ("<!-- dual_distill card begins -->\n", "does not have our two markers once each"),
        ("<!-- dual_distill card ends --><!-- dual_distill card begins -->", "does not have our two markers once each"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_card(readme)


def test_the_hand_written_part_that_was_changed_wins() -> None:
    written = render_card(ModelCardData(a=1), "ours", parse_card("old text"))
    edited, other = (parse_card(written.replace("old text", text)) for text in ("new text", "newer text"))
    same = parse_card(written)
    assert choose(edited, same) == edited
    assert choose(same, edited) == edited
    assert choose(None, same) == same
    assert choose(parse_card(""), same) == same
    with pytest.raises(ValueError, match="both have hand-written text, and it differs"):
        choose(edited, other)


def test_a_record_of_other_weights_is_said_to_be_stale_and_its_numbers_are_left_out(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder()
    write_run(folder, RUN)
    assert "62.5 %" in write_card(folder).read_text()
    save_file({"weight": np.ones((2, 4), np.float32)}, folder / "model.safetensors")
    card = write_card(folder).read_text()
    assert "The record of a run beside these weights (run.json) is about other weights" in card
    assert "No evaluation was noted beside these weights" in card
    for absent in ("62.5 %", "## Results", "teacher |", "arxiv", "\n\n\n"):
        assert absent not in card
    assert ModelCard(card).data.eval_results is None
    # Nor does a number of the new weights come to stand beside those of the old.
    record = read_run(folder)
    assert record is not None
    with pytest.raises(ValueError, match=r"the record is about weights sha256:.*have changed since; train again"):
        write_run(folder, record)


def test_what_a_person_told_of_the_model_is_in_the_card(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    data = DataOrigin("shop and yard", {"train": 90}, hub_ids=["me/shop", "me/yard"], arguments=["de", "default"])
    told = {"model_name": "Clerk", "finetuned_from": "me/base", "tasks": ["visual-question-answering", "other"]}
    write_run(folder, replace(RUN, data=data, **told))
    card = write_card(folder, repo_id="me/student", metadata={"language": "de", "tags": ["shop"]}).read_text()
    assert "\n# Clerk\n" in card
    assert "| weights started from | [me/base](https://huggingface.co/me/base) |" in card
    assert "[me/shop](https://huggingface.co/datasets/me/shop), [me/yard](https" in card
    assert "(de, default), 90 train rows" in card
    data = ModelCard(card).data
    assert (data.language, data.base_model, data.model_name) == ("de", "me/base", "Clerk")
    assert data.datasets == ["me/shop", "me/yard"]
    assert "shop" in data.tags
    assert [(one.task_type, one.dataset_config) for one in data.eval_results] == [
        ("visual-question-answering", "de"),
        ("other", "de"),
    ]


def test_losses_are_shown_where_nothing_else_was_measured(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    measurements = [Measurement(name, 0.25, "test", "evaluate") for name in ("loss", "mlm_loss", "accuracy")]
    write_run(folder, replace(RUN, measurements=tuple(measurements[:2])))
    card = write_card(folder).read_text()
    assert "| mlm loss | test |  | 0.25 |" in card  # nats, not per cent
    write_run(folder, replace(RUN, measurements=tuple(measurements)))
    card = write_card(folder).read_text()
    assert "loss | test" not in card
    assert "| accuracy | test |  | 25.0 % |" in card
