"""``categories.yaml``: number -> name of the lesion categories, for people to edit and for the datalist to honour."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from data_prep.atomic import write_text
from data_prep.errors import DataPrepError

NAMES_FILE = "categories.yaml"
PROPOSED_FILE = "categories.proposed.yaml"

MAX_NAME = 60
MAX_CATEGORIES = 10_000
_MAX_BYTES = 4_000_000
_SIGNS = "-_.()/+&'"

_HOW = f"""\
# Names of the lesion categories, proposed from what the lesions show; categories.html shows them. Edit them here:
# `datalist` and `coco` take the names from this file as long as it lies beside categories.parquet. Each name once;
# letters, digits, spaces and {" ".join(_SIGNS)} are good. A later `categorize` keeps what you edited.
"""
_LEAVE = "# Which categories these are, and what was proposed. Leave these two lines as they are.\n"


@dataclass(frozen=True, slots=True)
class CategoryNames:
    """A names file.

    Attributes:
        names: number -> name; not every category need have one.
        categorizer: which categoriser's categories they name (see :func:`fingerprint`); None: not stated.
        edited: whether somebody changed what was proposed.
    """

    names: Mapping[int, str]
    categorizer: str | None = None
    edited: bool = True

    def belong_to(self, categorizer: str | None, count: int) -> bool:
        """Whether these are names of the ``count`` categories of a categoriser, as far as is stated."""
        same = self.categorizer is None or categorizer is None or self.categorizer == categorizer
        return same and max(self.names, default=0) < count

    def over(self, names: Sequence[str]) -> tuple[str, ...]:
        """``names`` with those of this file in their places, and the others made different from them."""
        others = [number for number in range(len(names)) if number not in self.names]
        made = unique([names[number] for number in others], taken=self.names.values())
        merged = dict(self.names) | dict(zip(others, made, strict=True))
        return tuple(merged[number] for number in range(len(names)))


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """``names`` with " 2", " 3", ... after those that were there before or are taken; case does not count."""
    seen = {name.casefold() for name in taken}
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in seen:
            number += 1
            candidate = f"{name} {number}"
        seen.add(candidate.casefold())
        result.append(candidate)
    return result


def name_problem(name: object) -> str | None:
    """Why ``name`` cannot be a category's name; None where it can.

    Names go into MONAI configurations, which evaluate a string that begins with ``$`` and resolve ``@`` and ``%``, and
    into comma-separated MLflow parameters, HTML and plots. Hence letters and digits of any script, and a few signs.
    """
    if isinstance(name, bool | int | float):
        return f"is {str(name)[:20]}, which YAML does not take for a word; put it in quotes"
    if not isinstance(name, str):
        return "is empty" if name is None else "is not a word; put it in quotes"
    if not name.strip():
        return "is empty"
    if unicodedata.category(name[0])[0] not in "LN" or name[-1] == " ":
        return "does not begin with a letter or digit, or ends with a space"
    if len(name) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    if not all(sign == " " or sign in _SIGNS or unicodedata.category(sign)[0] in "LMN" for sign in name):
        return f"holds other signs than letters, digits, spaces and {' '.join(_SIGNS)}"
    return None


def fingerprint(categorizer: str | PathLike[str]) -> str:
    """What tells a fitted categoriser from others: the first 16 digits of the SHA-256 of its file."""
    return hashlib.sha256(Path(categorizer).read_bytes()).hexdigest()[:16]


def _digest(names: Mapping[int, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """``yaml.SafeLoader`` that refuses a key given twice, of which it would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> Any:
    wanted = "each line is a number, a colon and a name in quotes"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataPrepError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise DataPrepError(f"{path}: too large for a file of category names")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise DataPrepError(f"{path}{line}: {error.problem}; {wanted}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # also not UTF-8
        raise DataPrepError(f"{path}: not a list of names; {wanted}") from error


def read_names(path: str | PathLike[str]) -> CategoryNames:
    """Read a names file.

    Raises:
        DataPrepError: it cannot be read, is not YAML, or holds a number below 0 or twice, or a name that is empty,
            there twice, or has signs that are not allowed.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict):
        raise DataPrepError(f"{path}: not a list of names; each line is a number, a colon and a name in quotes")
    categorizer, proposal = (content.pop(key, None) for key in ("categorizer", "proposal"))
    names: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, name in content.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_CATEGORIES:
            raise DataPrepError(f"{path}: {str(number)[:40]!r} is not the number of a category; they are 0, 1, 2, ...")
        problem = name_problem(name)
        if problem:
            raise DataPrepError(f"{path}: the name of category {number} {problem}")
        first = seen.setdefault(name.casefold(), number)
        if first != number:
            raise DataPrepError(f"{path}: categories {first} and {number} have the same name; give each its own")
        names[number] = name
    return CategoryNames(names, None if categorizer is None else str(categorizer), proposal != _digest(names))


def write_names(path: str | PathLike[str], names: Sequence[str], categorizer: str, reasons: Sequence[str]) -> None:
    """Write proposed names, by number, and why each was proposed; atomic.

    ``categorizer`` is the :func:`fingerprint` of the one whose categories these are.
    """
    proposed = dict(enumerate(names))
    lines = [_HOW]
    for number, reason in zip(proposed, reasons, strict=True):
        comment = "".join(sign if sign.isprintable() else " " for sign in reason)
        lines.append(f"{number}: {json.dumps(proposed[number], ensure_ascii=False)}  # {comment}\n")
    lines += ["\n", _LEAVE, f'categorizer: "{categorizer}"\n', f'proposal: "{_digest(proposed)}"\n']
    write_text(path, "".join(lines))


def settle_names(
    folder: Path, proposed: Sequence[str], reasons: Sequence[str], categorizer: str, *, model: Path | None = None
) -> tuple[tuple[str, ...], str | None]:
    """Write ``categories.yaml``, or keep it.

    An edited file is never overwritten. Where it names the categories of another categoriser, the proposal goes into
    ``categories.proposed.yaml`` beside it.

    Args:
        folder: the output folder of `categorize`.
        proposed: names by number.
        reasons: why, by number.
        categorizer: the fingerprint of the categoriser.
        model: the file of an earlier categoriser, where one was used; the names beside it go before ``proposed``.

    Returns:
        The names now in use, and a message where a proposal could not take its place.

    Raises:
        DataPrepError: a names file is not a good one.
    """
    target, beside = folder / NAMES_FILE, folder / PROPOSED_FILE
    earlier = None if model is None else model.parent / NAMES_FILE
    if earlier is not None and earlier.is_file():
        given = read_names(earlier)
        if given.belong_to(categorizer, len(proposed)):
            proposed = given.over(proposed)
            reasons = ["as for the model" if i in given.names else reason for i, reason in enumerate(reasons)]
    if target.is_file():
        present = read_names(target)
        if present.edited and not present.belong_to(categorizer, len(proposed)):
            write_names(beside, proposed, categorizer, reasons)
            return tuple(proposed), (
                f"{target}: kept, because it was edited, but it names other categories than those found now; their "
                f"names are proposed in {PROPOSED_FILE}: edit it and rename it to {NAMES_FILE}"
            )
        if present.edited:
            beside.unlink(missing_ok=True)
            return present.over(proposed), None
    write_names(target, proposed, categorizer, reasons)
    beside.unlink(missing_ok=True)
    return tuple(proposed), None
