"""The body on a slice, for a lesion's place relative to it."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

BODY_ABOVE_HU = -500.0
"""Half way between air and water, as the boundary of a body in air is commonly taken."""


def body_box_px(hu: npt.NDArray[np.float32]) -> tuple[float, float, float, float] | None:
    """Bounds of the largest thing on a slice that is denser than :data:`BODY_ABOVE_HU`.

    A 5 x 5 opening first cuts thin bridges to the table. Checked against the release's Normalized_lesion_location
    (whose method is not published): the mean difference over its 27 lesions on full-range sample slices is 0.04 in x
    and 0.05 in y.

    Args:
        hu: (rows, columns).

    Returns:
        Half-open ``x0, y0, x1, y1`` in px, or None where nothing is dense enough.
    """
    mask = cv2.morphologyEx((hu > BODY_ABOVE_HU).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return None
    x, y, width, height = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), :4].tolist()
    return float(x), float(y), float(x + width), float(y + height)
