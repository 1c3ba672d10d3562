"""JSON schemas (2020-12) of the two files between ``data_prep`` and the bundles."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

from data_prep.errors import DataPrepError


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator for ``<name>.schema.json`` in this folder."""
    text = resources.files(__package__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def validate(value: Any, name: str) -> None:
    """Check a parsed JSON value.

    Args:
        value: what ``json.load`` gave.
        name: ``datalist`` or ``detections``.

    Raises:
        DataPrepError: the first place where it is not after the schema. The message quotes no value of the file.
    """
    try:
        error = next(validator(name).iter_errors(value), None)
    except RecursionError as deep:
        raise DataPrepError(f"not a {name} file: it is nested too deeply") from deep
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the whole file"
        wanted = json.dumps(error.validator_value)
        raise DataPrepError(f"not a {name} file: at {place}: {error.validator} should be {wanted[:200]}")
