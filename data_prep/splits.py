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
        # A node is the digit of its kind, then the identifier: the smallest of a set is its patient, if it has one.
        self._parent: dict[str, str] = {}
        self._stated: dict[str, set[str]] = {}
        self._resolved: dict[str, tuple[str, str]] = {}

    def add(self, identifiers: Sequence[str | None], stated_split: str | None = None) -> None:
        """Note one record.

        Args:
            identifiers: patient, study, series, image and file, in this order; None (or "") where not stated. The
                file counts only where nothing else is.
            stated_split: the source's own, or None.
        """
        nodes = self._nodes(identifiers)
        roots = [self._root(node) for node in nodes]
        low = min(roots)
        for root in roots:
            self._parent[root] = low
        if stated_split is not None:
            self._stated.setdefault(nodes[0], set()).add(stated_split)
        self._resolved.clear()

    def of(self, identifiers: Sequence[str | None]) -> tuple[str, str]:
        """(patient key, split) of a record that was added.

        The key is the smallest patient identifier, or else the smallest of the next kind. The split is the one stated
        for any of the patient's records, else by hash. A patient stated in several splits goes to the one that trains
        least: test before validation before train.
        """
        if not self._resolved:
            self._resolve()
        return self._resolved[self._root(self._nodes(identifiers)[0])]

    @property
    def in_two_splits(self) -> int:
        """How many patients their sources state in more than one split."""
        return sum(len(splits) > 1 for splits in self._stated_by_root().values())

    def _nodes(self, identifiers: Sequence[str | None]) -> list[str]:
        if len(identifiers) != len(self._KINDS):
            raise ValueError(f"expected {', '.join(self._KINDS)}, got {len(identifiers)} identifiers")
        *known, file = identifiers
        nodes = [f"{kind}{value}" for kind, value in enumerate(known) if value]
        return nodes or [f"{len(known)}{file or ''}"]

    def _root(self, node: str) -> str:
        self._parent.setdefault(node, node)
        path = []
        while self._parent[node] != node:
            path.append(node)
            node = self._parent[node]
        for passed in path:
            self._parent[passed] = node
        return node

    def _stated_by_root(self) -> dict[str, set[str]]:
        by_root: dict[str, set[str]] = {}
        for node, splits in self._stated.items():
            by_root.setdefault(self._root(node), set()).update(splits)
        return by_root

    def _resolve(self) -> None:
        stated = self._stated_by_root()
        for root in {self._root(node) for node in self._parent}:
            kind, value = int(root[0]), root[1:]
            key = value if kind == 0 else f"{self._KINDS[kind]}:{value}"
            given = [split for split in reversed(SPLITS) if split in stated.get(root, ())]
            self._resolved[root] = (key, given[0] if given else split_of(key))
