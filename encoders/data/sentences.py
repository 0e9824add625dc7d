"""Where sentences end, by a few rules: for pre-training on pairs, not for linguistics.

A sentence ends at a blank line, and after . ! ? or … with closing quotes and brackets, where white
space follows and then a capital letter or a digit, maybe in quotes or brackets; not after a single
capital letter (an initial) or one of a few abbreviations that stand before names and numbers.
"""

from __future__ import annotations

import re

_END = re.compile(
    r"""(?:[.!?…]+["'”’»)\]]*(?=\s+["'“‘«(\[]*[^\W_a-zß-öø-ÿ]))|(?:\n[ \t]*(?=\n))""", re.VERBOSE
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Rev|Gen|Col|Capt|Lt|Jr|Sr|vs|cf|Fig|No|Vol|pp?|"
    r"e\.g|i\.e|etc|al)\.$"
)


def split_sentences(text: str) -> list[str]:
    """Cuts a text into sentences, which joined are the text: white space begins the next one."""
    sentences, start = [], 0
    for match in _END.finditer(text):
        end = match.end()
        sentence = text[start:end]
        ends_a_line = match.group().startswith("\n")
        if not sentence.strip():
            continue
        if not ends_a_line and _ABBREVIATION.search(sentence[-12:]):
            continue
        sentences.append(sentence)
        start = end
    rest = text[start:]
    if rest.strip() or not sentences:
        return [*sentences, rest]
    return [*sentences[:-1], sentences[-1] + rest]
