"""The embedded default: a small synthetic hospital with DICOM series, reports and the full truth.

See ``docs/phantom.md``.
"""

from __future__ import annotations

from data_prep.phantom.hospital import DEFAULT_PATIENTS, make

__all__ = ["DEFAULT_PATIENTS", "make"]
