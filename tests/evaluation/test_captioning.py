"""Caption metrics: scores that other tools printed, a reward that is CIDEr, the words that are counted."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dual_distill.evaluation import CaptionScores, CiderReward, write_captions
from dual_distill.evaluation.captioning import caption_words

DATA = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture
def anchors():
    pytest.importorskip("pycocoevalcap", reason='needs pip install "dual-distill[captions]"')
    file = DATA / "metric_anchors" / "caption_metric_anchors.json"
    if not file.is_file():
        pytest.skip(f"needs {file} (set DUAL_DISTILL_DATA to the folder that holds metric_anchors)")
    return json.loads(file.read_text())


def test_the_scores_that_nlg_eval_prints(anchors):
    case = anchors["nlg_eval_examples"]
    references = [list(row) for row in zip(*case["refs"], strict=True)]  # the file has one list a reference
    found = CaptionScores().compute(predictions=case["hyp"], references=references)
    assert round(found["cider"], 6) == case["expected"]["CIDEr"] == 1.242192
    assert round(found["bleu_4"], 6) == case["expected"]["Bleu_4"] == 0.201143


@pytest.mark.parametrize("kind, cider", [("good", 0.5637), ("bad", 0.279)])
def test_the_scores_that_clipscore_prints(kind, cider, anchors):
    case = anchors["clipscore_example"]
    images = list(case["refs"])
    references = [case["refs"][image] for image in images]
    found = CaptionScores().compute(predictions=[case[kind][image] for image in images], references=references)
    assert round(found["cider"], 4) == case[f"expected_{kind}"]["CIDER"] == cider
    assert round(found["bleu_4"], 4) == case[f"expected_{kind}"]["BLEU-4"]


CAPTIONS = ["a dog on a mat", "two cats , two cats and two cats", "", "The man's dog isn't red."]
REFERENCES = [
    ["a dog lies on a mat", "the dog sits"],
    ["two cats", "two cats on a sofa", "cats"],
    ["a red bus"],
    ["the man 's dog is n't red", "a dog", "a red dog"],
]


def test_the_reward_over_its_own_corpus_is_cider():
    pytest.importorskip("pycocoevalcap", reason='needs pip install "dual-distill[captions]"')
    reward = CiderReward(REFERENCES)
    found = [reward(caption, row) for caption, row in zip(CAPTIONS, REFERENCES, strict=True)]
    expected = CaptionScores().compute(predictions=CAPTIONS, references=REFERENCES)["cider"]
    assert sum(found) / 4 == pytest.approx(expected, rel=1e-9)
    assert found[2] == 0
    assert found[3] > 3


def test_the_reward_by_hand():
    """Two images, no word in both: each n-gram weighs ln 2, a caption of four words has 4, 3, 2 and 1 of them."""
    reward = CiderReward([["red dog sits here"], ["blue cat lies there"]])
    assert reward("red dog sits here", ["red dog sits here"]) == pytest.approx(10.0)
    assert reward("red dog sits here", ["red dog sits here", "blue cat lies there"]) == pytest.approx(5.0)
    # Three words of four: 3 of 4, 2 of 3 and 1 of 2 n-grams are right, and it is one pair of words shorter.
    parts = [3 / math.sqrt(3 * 4), 2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0.0]
    expected = 10 * sum(parts) / 4 * math.exp(-1 / 72)
    assert reward("red dog sits", ["red dog sits here"]) == pytest.approx(expected)
    assert reward("dog dog dog dog", ["red dog sits here"]) == pytest.approx(10 * (1 / (4 * 2)) / 4)  # paid once


def test_many_batches_are_one():
    pytest.importorskip("pycocoevalcap", reason='needs pip install "dual-distill[captions]"')
    scores = CaptionScores()
    for caption, row in zip(CAPTIONS, REFERENCES, strict=True):
        scores.add(prediction=caption, reference=row)
    assert scores.compute() == CaptionScores().compute(predictions=CAPTIONS, references=REFERENCES)


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A cat, a dog; and -- well -- a BIRD!", "a cat a dog and well a bird"),
        ("It's the dogs' life, isn't it?", "it 's the dogs life is n't it"),
        ("They've a T-shirt; he cannot see.", "they 've a t-shirt he can not see"),
        ("U.S. mail at 5:30 on 8th ave. (50% off)", "u.s. mail at 5:30 on 8th ave. -lrb- 50 % off -rrb-"),
        ('a "quoted" sign & 1,000 things', "a quoted sign & 1,000 things"),
        ("a caf\u00e9\u2019s hors d'oeuvres and/or tea\n", "a caf\u00e9 's hors d'oeuvres and/or tea"),
        ("A. clear vase on W. Centre St. in Ky. (Pa.)", "a. clear vase on w. centre st. in ky. -lrb- pa. -rrb-"),
        ("I like pa. and a plan B. The dog", "i like pa and a plan b the dog"),
        ("the corner of 22 3/4 St", "the corner of 22 3/4 st"),
        # Vowel signs, tone marks and joiners make other words; accents may be written in two ways.
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),
        ("แม่ว แมว", "แม่ว แมว"),
        ("Cafe\u0301, na\u00efve", "caf\u00e9 na\u00efve"),
        (" . ", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank(caption, words):
    assert caption_words(caption) == words.split()


@pytest.mark.slow
def test_words_are_those_of_the_official_java_tokenizer(tmp_path):
    """On all captions of COCO val2017, as blanks part them (as the metrics do), those in "22 3/4" among them."""
    package = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer", reason='needs pip install "dual-distill[captions]"'
    )
    file = DATA / "coco_captions_text" / "captions_val2017.json.gz"
    if not file.is_file() or shutil.which("java") is None:
        pytest.skip(f"needs java and {file}")
    with gzip.open(file) as stream:
        captions = [one["caption"].replace("\n", " ") for one in json.load(stream)["annotations"]]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    jar = Path(package.__file__).with_name(package.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        "captions.txt",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.split("\n")[: len(captions)]
    official = [[word for word in line.split() if word not in package.PUNCTUATIONS] for line in lines]
    unequal = [caption for caption, words in zip(captions, official, strict=True) if caption_words(caption) != words]
    assert len(captions) == 25_014
    assert unequal == []


def test_captions_are_written_in_cocos_results_format(tmp_path):
    file = tmp_path / "out" / "results.json"
    write_captions(file, [3, 1], ["a dog", 'a "caf\u00e9"'])
    rows = [{"image_id": 3, "caption": "a dog"}, {"image_id": 1, "caption": 'a "caf\u00e9"'}]
    assert json.loads(file.read_text(encoding="utf-8")) == rows
    with pytest.raises(ValueError, match="There are 1 image ids and 2 captions"):
        write_captions(file, [1], ["a", "b"])
    with pytest.raises(ValueError, match="There are 0 image ids and 0 captions"):
        write_captions(file, [], [])
    with pytest.raises(ValueError, match="Image 1 occurs in rows 0 and 1"):
        write_captions(file, [1, 1], ["a", "b"])


@pytest.mark.parametrize(
    "captions, references, message",
    [
        ([3], [["a"]], "Row 0 predicts 3, but a caption is a string"),
        (["a", "b"], [["a"], []], "Row 1 has no references"),
        (["a"], ["a dog"], "Row 0 has a string references"),
    ],
)
def test_what_cannot_be_scored_is_refused(captions, references, message):
    with pytest.raises(ValueError, match=message):
        CaptionScores().add_batch(predictions=captions, references=references)


def test_without_pycocoevalcap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ImportError, match=r"need pycocoevalcap, .*dual-distill\[captions\]"):
        CaptionScores().compute(predictions=["a"] * 2, references=[["a"]] * 2)


def test_hindi_words_are_not_their_consonants():
    """Three captions of wrong vowels: as sets of consonants each was its reference, and scored 10."""
    pytest.importorskip("pycocoevalcap", reason='needs pip install "dual-distill[captions]"')
    right = ["लाल दिन", "काला घर", "पीला फूल"]
    wrong = ["लील दुन", "केली घीर", "पूली फिल"]
    references = [[caption] for caption in right]
    assert CaptionScores().compute(predictions=wrong, references=references)["cider"] == 0
    assert CaptionScores().compute(predictions=right, references=references)["cider"] > 4


def test_one_image_alone_has_no_cider():
    refused = "CIDEr weighs words by how few of the images have them, but"
    with pytest.raises(ValueError, match=f"{refused} there is one; give two images or more"):
        CaptionScores().compute(predictions=["a dog"], references=[["a dog"]])
    with pytest.raises(ValueError, match=f"{refused} there is one"):
        CiderReward([["a dog"]])
    with pytest.raises(ValueError, match=f"{refused} there are none"):
        CiderReward([])
