"""Which patient is in which split; no patient is ever in two.

A patient's place depends on the patient's identifier alone (a salted hash), so it does not move when an archive grows
or files come in another order, and whoever holds only the data set cannot choose it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ("train", "validation", "test")
PARTS = (0.70, 0.15, 0.15)
TUNING_PART = 0.15

# Two salts, so that the tuning patients are not those at one end of the split's own ordering. They are part of the
# data format: another value is another split.
_SPLIT_SALT = "lesion-bookmarks/split/1"
_TUNING_SALT = "lesion-bookmarks/tuning/1"


def unit_interval(key: str, salt: str) -> float:
    """A number in [0, 1) from the SHA-256 of salt and key; uniform over keys."""
    digest = hashlib.sha256(f"{salt}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_of(patient: str) -> str:
    """train (70 %), validation (15 %) or test (15 %) for a patient whose source states no split."""
    value = unit_interval(patient, _SPLIT_SALT)
    if value < PARTS[0]:
        return SPLITS[0]
    return SPLITS[1] if value < PARTS[0] + PARTS[1] else SPLITS[2]


def tuning_patients(train_patients: Iterable[str]) -> set[str]:
    """The train patients set aside for choices during training: 15 % of them.

    Where the hash picks none of at least two, the one with the smallest hash is taken, so that a small data set can be
    trained on as well; it picks never all of them.
    """
    ordered = sorted(set(train_patients), key=lambda patient: (unit_interval(patient, _TUNING_SALT), patient))
    chosen = [patient for patient in ordered if unit_interval(patient, _TUNING_SALT) < TUNING_PART]
    if len(ordered) < 2:
        return set()
    return set(chosen[: len(ordered) - 1] or ordered[:1])


class Patients:
    """Who is the same patient, where some records state no patient.

    Records that share a patient, study, series or image identifier (or, where they have none of these, a file) are one
    patient's. So a mark that states only its image goes where the image's other marks go.
    """

    _KINDS = ("patient", "study", "series", "image", "file")

    def __init__(self) -> None:
        # A node stands for an identifier by its hash: the strings of a large archive's images would take much memory.
        self._parent: dict[int, int] = {}
        # Of a set, by its root: the smallest of its identifiers after the digit of their kind, and the stated splits.
        self._smallest: dict[int, str] = {}
        self._stated: dict[int, set[str]] = {}

    def add(self, identifiers: Sequence[str | None], stated_split: str | None = None) -> None:
        """Note one record.

        Args:
            identifiers: patient, study, series, image and file, in this order; None (or "") where not stated. The
                file counts only where nothing else is.
            stated_split: the source's own, or None.
        """
        names = self._names(identifiers)
        nodes = [_hash(name) for name in names]
        for node, name in zip(nodes, names, strict=True):
            if node not in self._parent:
                self._parent[node] = node
                self._smallest[node] = name
        first, *others = dict.fromkeys(map(self._root, nodes))
        for root in others:
            self._parent[root] = first
            self._smallest[first] = min(self._smallest[first], self._smallest.pop(root))
            if root in self._stated:
                self._stated.setdefault(first, set()).update(self._stated.pop(root))
        if stated_split is not None:
            self._stated.setdefault(first, set()).add(stated_split)

    def of(self, identifiers: Sequence[str | None]) -> tuple[str, str]:
        """(patient key, split) of a record that was added.

        The key is the smallest patient identifier, or else the smallest of the next kind. The split is the one stated
        for any of the patient's records, else by hash. A patient stated in several splits goes to the one that trains
        least: test before validation before train.

        Raises:
            KeyError: the record was not added.
        """
        root = self._root(_hash(self._names(identifiers)[0]))
        kind, value = int(self._smallest[root][0]), self._smallest[root][1:]
        key = value if kind == 0 else f"{self._KINDS[kind]}:{value}"
        given = [split for split in reversed(SPLITS) if split in self._stated.get(root, ())]
        return key, given[0] if given else split_of(key)

    @property
    def in_two_splits(self) -> int:
        """How many patients their sources state in more than one split."""
        return sum(len(splits) > 1 for splits in self._stated.values())

    def _names(self, identifiers: Sequence[str | None]) -> list[str]:
        if len(identifiers) != len(self._KINDS):
            raise ValueError(f"expected {', '.join(self._KINDS)}, got {len(identifiers)} identifiers")
        *known, file = identifiers
        names = [f"{kind}{value}" for kind, value in enumerate(known) if value]
        return names or [f"{len(known)}{file or ''}"]

    def _root(self, node: int) -> int:
        path = []
        while self._parent[node] != node:
            path.append(node)
            node = self._parent[node]
        for passed in path:
            self._parent[passed] = node
        return node


def _hash(name: str) -> int:
    """88 bits: among a billion names two are alike with a chance of 1 in 600 million."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=11).digest(), "big")
