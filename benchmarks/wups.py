"""WUPS, DAQUAR's own score: an answer that means nearly the same counts in part.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet  # WordNet 3.0: wordnet/usr/share/wordnet
    pip install nltk==3.5                                  # newer ones read WordNet from their own folders alone
    python benchmarks/wups.py --wordnet FOLDER curtain table  # prints WUPS at 0.9 and 0.0 of two answers

Malinowski and Fritz, *A multi-world approach to question answering about real-world scenes based on uncertain input*,
NIPS 2014: an answer is a set of words with commas between. The membership of a word in a set is its largest Wu-Palmer
similarity, over the noun senses of both, to a word of the set, times 0.1 where it is below the threshold; a score is
the smaller of the products of the memberships of either set in the other. Equal words have 1, unknown ones 0.
Curtain and blinds have 0.94, carpet and floor 0.67.
"""

import argparse
import functools
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

THRESHOLDS = (0.9, 0.0)
_NUM_LEXICOGRAPHER_FILES = 45

Similarity = Callable[[str, str], float]


def load_similarity(folder: Path) -> Similarity:
    """Wu-Palmer similarity of two words by the dictionary files of WordNet 3.0, by NLTK's reader."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    # It wants the names of the lexicographers' files too, which Debian leaves out and WUPS never asks.
    whole = Path(tempfile.mkdtemp(), "wordnet")
    shutil.copytree(folder, whole)
    names = "".join(f"{number:02d}\tname{number}\t1\n" for number in range(_NUM_LEXICOGRAPHER_FILES))
    Path(whole, "lexnames").write_text(names)
    words: Any = WordNetCorpusReader(str(whole), None)

    @functools.cache
    def senses(word: str) -> list[Any]:
        return words.synsets(word, pos="n")

    @functools.cache
    def similarity(word: str, other: str) -> float:
        pairs = ((one.wup_similarity(two) or 0.0) for one in senses(word) for two in senses(other))
        return max(pairs, default=0.0)

    return similarity


def wups(answer: str, label: str, threshold: float, similarity: Similarity) -> float:
    """Score of an answer, 0 to 1."""

    def membership(word: str, other: str) -> float:
        if word == other:
            return 1.0
        found = similarity(word, other)
        return found if found >= threshold else 0.1 * found

    said, right = ([word.strip() for word in text.split(",")] for text in (answer, label))
    of_said = math.prod(max(membership(word, other) for other in right) for word in said)
    of_right = math.prod(max(membership(word, other) for other in said) for word in right)
    return min(of_said, of_right)


def mean_wups(pairs: list[tuple[str, str]], similarity: Similarity) -> dict[str, float]:
    """Mean scores of many answers and labels, in per cent, by threshold."""
    return {
        f"WUPS at {threshold}": round(100 * sum(wups(*pair, threshold, similarity) for pair in pairs) / len(pairs), 2)
        for threshold in THRESHOLDS
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("answers", nargs=2)
    options = parser.parse_args()
    print(mean_wups([tuple(options.answers)], load_similarity(options.wordnet)))
