"""The content tree of a structured report as plain objects: tolerant of what real and damaged reports contain.

highdicom's classes refuse a report at its first fault and cost several times the parse itself; this walk keeps every
item it can and says what is wrong with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from data_prep.readers.dicom_kind import DAMAGE

MAX_DEPTH = 64
"""Levels below the root that are read; TID 1500 needs 5, mammography CAD 9."""

_RELATIONSHIP = 0x0040A010
_VALUE_TYPE = 0x0040A040
_CONCEPT_NAME = 0x0040A043
_CONTENT = 0x0040A730
_REFERENCE = 0x0040DB73
_CODE_VALUES = (0x00080100, 0x00080119, 0x00080120)  # CodeValue, LongCodeValue, URNCodeValue
_SCHEME = 0x00080102
_MEANING = 0x00080104
_PADDING = " \0\r\n\t"


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept; missing parts are empty strings."""

    value: str
    scheme: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.value}^{self.scheme}^{self.meaning}"


NO_CODE = Code("", "", "")


@dataclass(slots=True, eq=False)
class Item:
    """One content item. ``path`` counts from 1 at every level and begins with the root, as PS3.3 C.18.6 refers."""

    dataset: Dataset
    path: tuple[int, ...]
    parent: Item | None
    relationship: str = ""
    value_type: str = ""
    concept: Code = NO_CODE
    reference: tuple[int, ...] | None = None
    children: list[Item] = field(default_factory=list)
    _by_concept: dict[str, list[Item]] | None = None
    _images: list[Item] | None = None

    @property
    def where(self) -> str:
        """The path in words for ``rejected.csv``."""
        return "item " + ".".join(map(str, self.path))

    def named(self, *concepts: str) -> list[Item]:
        """The children whose concept has one of these code values, by concept, then in document order."""
        if self._by_concept is None:  # made once: a hostile report may have thousands of marks in one container
            self._by_concept = {}
            for child in self.children:
                self._by_concept.setdefault(child.concept.value, []).append(child)
        return [child for concept in concepts for child in self._by_concept.get(concept, ())]

    def ancestors(self) -> Iterator[Item]:
        """The items above this one, the nearest first."""
        item = self.parent
        while item is not None:
            yield item
            item = item.parent

    def walk(self) -> Iterator[Item]:
        """This item and all below it, in document order."""
        stack = [self]
        while stack:
            item = stack.pop()
            yield item
            stack.extend(reversed(item.children))


@dataclass(slots=True)
class Tree:
    """A parsed report: its root, every item by path, and (where, reason) of what could not be read."""

    root: Item
    by_path: dict[tuple[int, ...], Item]
    faults: list[tuple[str, str]]

    def targets(self, item: Item) -> list[Item]:
        """The children of an item, with references to other places of the tree followed (one step)."""
        return [
            self.by_path.get(child.reference, child) if child.reference is not None else child
            for child in item.children
        ]

    def images(self, item: Item) -> list[Item]:
        """The IMAGE items among :meth:`targets`."""
        if item._images is None:
            item._images = [target for target in self.targets(item) if target.value_type == "IMAGE"]
        return item._images


def parse(dataset: Dataset) -> Tree:
    """Read the content tree of an SR object; nothing in it makes this raise."""
    root = Item(dataset, (1,), None)
    tree = Tree(root, {(1,): root}, [])
    stack = [root]
    while stack:
        item = stack.pop()
        try:
            _read(item)
            below = sequence(item.dataset, _CONTENT)
        except DAMAGE as error:
            tree.faults.append((item.where, f"damaged content item ({type(error).__name__})"))
            continue
        if below and len(item.path) > MAX_DEPTH:
            tree.faults.append((item.where, f"content items nested deeper than {MAX_DEPTH} levels are not read"))
            continue
        for number, child in enumerate(below, start=1):
            node = Item(child, (*item.path, number), item)
            tree.by_path[node.path] = node
            item.children.append(node)
        stack.extend(reversed(item.children))
    return tree


def _read(item: Item) -> None:
    item.relationship = text(item.dataset, _RELATIONSHIP).upper()
    item.value_type = text(item.dataset, _VALUE_TYPE).upper()
    item.concept = code(item.dataset, _CONCEPT_NAME)
    reference = item.dataset.get(_REFERENCE)
    if reference is not None and reference.value is not None:
        item.reference = tuple(int(part) for part in ([reference.value] if reference.VM == 1 else reference.value))


def sequence(dataset: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence; empty where the element is missing or is something else."""
    element = dataset.get(tag)
    if element is None or element.VR != "SQ" or not element.value:
        return []
    return [item for item in element.value if isinstance(item, Dataset)]


def raw_bytes(dataset: Dataset, tag: int) -> tuple[bytes, bool] | None:
    """The stored bytes of an element that pydicom has not converted yet, and whether they are little endian."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        return element.value, element.is_little_endian
    return None


def text(dataset: Dataset, tag: int) -> str:
    """The value of a string element without padding; "" where it is missing.

    Plain ASCII is decoded here: pydicom's conversion of every element is what costs most in reading a report.
    """
    raw = raw_bytes(dataset, tag)
    if raw is not None and raw[0].isascii() and b"\x1b" not in raw[0]:
        return raw[0].decode("ascii").strip(_PADDING)
    element = dataset.get(tag)
    if element is None or element.VR == "SQ" or element.value is None or isinstance(element.value, bytes):
        return ""
    return str(element.value).strip(_PADDING)


def code(dataset: Dataset, tag: int) -> Code:
    """The first item of a code sequence."""
    items = sequence(dataset, tag)
    if not items:
        return NO_CODE
    value = next((found for found in (text(items[0], tag) for tag in _CODE_VALUES) if found), "")
    return Code(value, text(items[0], _SCHEME), text(items[0], _MEANING))
