"""Free answers made comparable: the official VQA normalisation, and the scores of ten people's answers.

Readers (`data`), metrics and the answering pipeline must agree on when two answers are the same, and rooms do not
import one another; so this one module stands outside the rooms, and imports the standard library alone. What is
unusual: the rules reproduce the official evaluation to the letter, its slips included, for a published score is made of
them. "a.m." loses its full stops, "none" is the number 0 and "no" is not, "somebody'd" loses its apostrophe, and
capital "Im" never meets its contraction since words are lowered first.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official expression guards the digit before the stop by a misspelt look-behind that never holds anything back.
_STOP_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
_MOST_STOPS_REMOVED = 32  # re.UNICODE stands in the place of re.sub's count there, and its value is 32
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})
# Each is restored where exactly one of its apostrophes was dropped.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}
_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
_REMEMBERED = 100_000  # of millions of answers most were there before


def strip_answer(text: str) -> str:
    r"""An answer on one line without blanks at its ends, otherwise as it was: what is compared where all people agree.

    Args:
        text: an answer.

    Returns:
        The answer with line ends and tabs as blanks, stripped, accents composed (Unicode's NFC, which the official
        evaluation leaves to chance: the same letters may be written in two ways).

    Example:
        >>> strip_answer(" The red\tone\n")
        'The red one'
    """
    return unicodedata.normalize("NFC", text).replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=_REMEMBERED)
def process_punctuation(text: str) -> str:
    """An answer without punctuation, as the official evaluation takes it out.

    A sign that stands beside a blank anywhere in the answer vanishes, another becomes a blank; where a comma stands
    between two digits, all signs vanish. A full stop stays before a digit only. Apostrophes and colons stay.

    Args:
        text: an answer, best after `strip_answer`.

    Returns:
        The answer, upper and lower case as they were.

    Example:
        >>> process_punctuation("black/white"), process_punctuation("yes, sir"), process_punctuation("1,000-2,000")
        ('black white', 'yes sir', '10002000')
        >>> process_punctuation("5 p.m."), process_punctuation("2.5")
        ('5 pm', '2.5')
    """
    vanish = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        if sign in text:
            beside_blank = f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if vanish or beside_blank else " ")
    return _STOP_BEFORE_NO_DIGIT.sub("", result, count=_MOST_STOPS_REMOVED)


def process_digits_and_articles(text: str) -> str:
    """An answer in lower case, number words (none, zero to ten) as digits, without articles, contractions restored.

    Args:
        text: an answer, best after `process_punctuation`.

    Returns:
        The words, with one blank between two.

    Example:
        >>> process_digits_and_articles("The  two dogs dont")
        "2 dogs don't"
    """
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=_REMEMBERED)
def normalise_answer(text: str) -> str:
    """An answer as the official VQA evaluation compares it.

    Args:
        text: an answer.

    Returns:
        The answer after `strip_answer`, `process_punctuation` and `process_digits_and_articles`; empty where nothing
        but articles and punctuation was there.

    References:
        Antol et al., ICCV 2015; visualqa.org/evaluation.html, "before evaluating machine generated answers".

    Example:
        >>> normalise_answer("A Hot-Dog!"), normalise_answer("none"), normalise_answer("isnt")
        ('hot dog', '0', "isn't")
    """
    return process_digits_and_articles(process_punctuation(strip_answer(text)))


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """How right each answer of a question is: 0.3 for one person who gave it, 0.6 for two, 0.9 for three, 1 for more.

    The usual training target, which no edition of the official evaluation changes. With ten answers it is what the
    edition of 2021 gives to that answer where people differ, and 1 where they agree: the mean over the ten people of
    min(1, matches among the other nine / 3). It is not min(1, count / 3), the rule of thumb often quoted.

    Args:
        answers: what people said, usually ten answers, compared as they are: normalise them first.

    Returns:
        Answer -> score in (0, 1], most frequent first; empty for no answers.

    Note:
        Fewer than ten answers are scored by the same table, although the mean above is another one then.

    References:
        Antol et al., ICCV 2015; the targets of Kim et al., ICML 2021 (ViLT), arXiv 2102.03334.

    Example:
        >>> soft_scores(["red"] * 7 + ["pink"] * 2 + ["rose"])
        {'red': 1.0, 'pink': 0.6, 'rose': 0.3}
    """
    return {answer: _SCORES[min(count, 4)] for answer, count in Counter(answers).most_common()}
