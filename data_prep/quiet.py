"""Silence around pydicom: its warnings and log lines quote values of the file, and a value may be a patient's name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """No warnings and no log lines while DICOM values are read and converted; invalid values are kept as they are."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
