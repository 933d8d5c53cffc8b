"""Detection of answers in another language than the prompt asks for.

Models that were mostly trained on another language switch to it, most often for a whole answer.
The script reveals most of these; languages in the Latin script differ in their function words,
which names and titles in an answer hardly contain.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_LATIN = "LATIN"
_CJK = ("CJK", "IDEOGRAPHIC")
_SCRIPTS: Final[dict[str, tuple[str, ...]]] = {
    "ar": ("ARABIC",),
    "bg": ("CYRILLIC",),
    "el": ("GREEK",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", *_CJK),
    "ko": ("HANGUL", *_CJK),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "zh": _CJK,
}
# Words that are frequent in one of these languages and rare in English.
_FUNCTION_WORDS: Final[dict[str, frozenset[str]]] = {
    # A single letter may be anything.
    language: frozenset(word for word in words.split() if len(word) > 1)
    for language, words in {
        "cs": "a je na se v ve z ze s si pro jako které který jsou nebo také jeho",
        "da": "og det en et af til der som på med for ikke er har hans eller fra ved",
        "de": "der die das und ist mit ein eine einer von für auf dem den nicht auch als",
        "en": "the and of with a an in is are by for from or its that their who on as to",
        "es": "el la los las de del y en un una que por con para es como su sus pero más",
        "fi": "ja on ei että joka sekä ovat myös mutta kuin niin hän ne tämä",
        "fr": "le la les des du de et un une est dans que qui pour avec sur au aux par ses plus",
        "id": "yang dan di dari untuk dengan ini itu adalah pada tidak sebagai oleh dalam",
        "it": "il lo la gli le di del della dei e un una che per con nel nella sono si più",
        "nl": "de het een en van is dat met voor op zijn niet ook aan door uit hun als bij naar",
        "pl": "i w na z ze się jest oraz nie do który które jako przez dla ich jego lub",
        "pt": "o os as de da do dos das e um uma que em no na por com para é como seu mais",
        "sv": "och det en ett av till som på med för inte är har hans eller från",
        "tr": "ve bir bu ile için olan da de gibi daha çok olarak ama hem kadar",
        "vi": "và của là một các trong những cho với được không có",
    }.items()
}
LANGUAGES: Final = tuple(sorted({*_SCRIPTS, *_FUNCTION_WORDS}))
"""Languages that can be detected, as ISO 639-1 codes."""

_WORD = re.compile(r"[^\W\d_]+")
_LEAST_LETTERS = 8
_LEAST_WORDS, _LEAST_DIFFERENT = 4, 3
"""Fewer function words of another language may come from names and titles."""
# Titles, whatever their language.
_QUOTED = re.compile(
    r"\"[^\"\n]*\"|[\u201c\u201e\u201d][^\u201c\u201d\n]*[\u201c\u201d]|\u00ab[^\u00bb\n]*\u00bb"
    r"|\u300a[^\u300b\n]*\u300b|\u300c[^\u300d\n]*\u300d|\u300e[^\u300f\n]*\u300f"
)
_BETWEEN_NAMES = re.compile(r"\s*[,;|/\n]\s*|\s+(?:and|&)\s+")
_MOST_NAME_WORDS = 8


def foreign_factors(texts: Mapping[str, str], language: str) -> list[str]:
    """Find factors whose text is in another language; all factors if most of an answer is.

    Lists of names and titles are in no language.

    Args:
        language: One of `LANGUAGES`.
    """
    foreign = [factor for factor, text in texts.items() if is_other_language(text, language)]
    names = {factor for factor, text in texts.items() if _are_names(text)}
    # Each may be too short to be detected alone.
    rest = "\n".join(text for key, text in texts.items() if key not in {*foreign, *names})
    if 2 * len(foreign) > len(texts) or is_other_language(rest, language):
        return list(texts)
    return [factor for factor in foreign if factor not in names]


def is_other_language(text: str, language: str) -> bool:
    """Whether most of a text is in another language; never true for very short texts."""
    text = _QUOTED.sub(" ", text)
    letters = [char for char in text if char.isalpha()]
    if len(letters) < _LEAST_LETTERS:
        return False
    scripts = Counter(map(_script, letters))
    expected = _SCRIPTS.get(language, (_LATIN,))
    if 2 * sum(scripts[script] for script in expected) < len(letters):
        return True
    return language in _FUNCTION_WORDS and not _are_names(text) and _other_words(text, language)


def _are_names(text: str) -> bool:
    """Whether a text lists names: several short phrases that begin with a capital or digit."""
    names = [name for name in _BETWEEN_NAMES.split(text.strip(" .")) if name]
    return len(names) > 1 and all(
        (name[0].isupper() or name[0].isdigit()) and len(name.split()) <= _MOST_NAME_WORDS
        for name in names
    )


def _other_words(text: str, language: str) -> bool:
    words = Counter(word.lower() for word in _WORD.findall(text))
    own = sum(words[word] for word in _FUNCTION_WORDS[language])
    others = [
        [words[word] for word in known - _FUNCTION_WORDS[language] if words[word]]
        for code, known in _FUNCTION_WORDS.items()
        if code != language
    ]
    return any(
        len(counts) >= _LEAST_DIFFERENT and sum(counts) >= _LEAST_WORDS and sum(counts) > 2 * own
        for counts in others
    )


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    return unicodedata.name(char, "?").split()[0]
