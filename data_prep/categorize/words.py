"""How alike the words of bookmarks are to words that somebody looks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer, strip_accents_unicode

from data_prep.lesion import Lesion

_WORD = re.compile(r"\w+")

# "metastases" and "metastasis", "masses" and "mass", "biopsies" and "biopsy", "lesions" and "lesion" are one word;
# "pelvis", "thrombus" and "gas" end as they are. No whole stemmer: it would join "renal" and "reniform".
_ENDINGS = [
    (re.compile(r"(?<=\w{2})ies\b"), "y"),
    (re.compile(r"(?<=\w{2})(?:ses|sis|se)\b"), "s"),
    (re.compile(r"(?<=\w{3})(?<![isu])s\b"), ""),
]


def words(lesion: Lesion) -> str:
    """What a lesion's bookmarks say: text, site, finding and side; "" where they say nothing.

    Of a code ``value^scheme^meaning`` only the meaning counts.
    """
    stated = (lesion.text, meaning(lesion.site), meaning(lesion.finding_code), meaning(lesion.laterality))
    return " ".join(part for part in stated if part)


def meaning(stated: str | None) -> str:
    """The meaning of ``value^scheme^meaning`` (the value where the meaning is empty); other words as they are."""
    value, *rest = (stated or "").split("^", 2)
    return rest[1] or value if len(rest) == 2 else stated or ""


def normalise(text: str) -> str:
    """Lower case, without accents, plurals as singulars."""
    text = strip_accents_unicode(text.lower())
    for ending, singular in _ENDINGS:
        text = ending.sub(singular, text)
    return text


def text_similarity(documents: Sequence[str], text: str) -> npt.NDArray[np.float32]:
    """Cosine similarity (0 to 1) of documents to a text: TF-IDF of words and of pairs of neighbouring words.

    Whole words, not parts of words: "renal" must not find "adrenal". The inverse document frequency is that of the
    documents that have words.

    Args:
        documents: N; one without words has similarity 0.
        text: what is looked for.

    Returns:
        (N,); all zero where no document shares a word with the text.

    Raises:
        ValueError: no document has a word.
    """
    spoken = [number for number, document in enumerate(documents) if _WORD.search(document)]
    if not spoken:
        raise ValueError("no document has a word")
    vectorizer = TfidfVectorizer(
        preprocessor=normalise,
        token_pattern=_WORD.pattern,  # one digit or letter is a word as well: "segment 7", "L 3"
        ngram_range=(1, 2),
        sublinear_tf=True,
        dtype=np.float32,
    )
    table = vectorizer.fit_transform([documents[number] for number in spoken])
    similarity = np.zeros(len(documents), np.float32)
    similarity[spoken] = (table @ vectorizer.transform([text]).T).toarray()[:, 0]
    return similarity
