"""RT Structure Sets put together by hand after PS3.3 A.19."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from tests.data_prep.dicom_objects import item


def ct_reference(uid: str) -> Dataset:
    """An item that names a CT image."""
    return item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)


def contour(points_lps_mm: npt.NDArray, image_uid: str | None, kind: str = "CLOSED_PLANAR") -> Dataset:
    """An item of Contour Sequence; (N, 3) points, written with 4 decimals of a millimetre."""
    made = item(
        ContourGeometricType=kind,
        NumberOfContourPoints=len(points_lps_mm),
        ContourData=[f"{value:.4f}" for value in points_lps_mm.ravel()],
    )
    if image_uid is not None:
        made.ContourImageSequence = [ct_reference(image_uid)]
    return made


def with_rois(
    header: Dataset,
    rois: Mapping[str, Sequence[Dataset]],
    *,
    series_uid: str,
    image_uids: Iterable[str],
    algorithm: str = "",
    **observation: str,
) -> Dataset:
    """``header`` as a structure set: ROI name -> contours on these images of its study and frame of reference.

    ``observation`` is what all ROIs' observations say; they are of type GTV where it does not say otherwise.
    """
    series = item(SeriesInstanceUID=series_uid, ContourImageSequence=[ct_reference(uid) for uid in image_uids])
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=header.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = header.FrameOfReferenceUID
    header.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    header.StructureSetROISequence = [
        item(ROINumber=n, ReferencedFrameOfReferenceUID=frame, ROIName=name, ROIGenerationAlgorithm=algorithm)
        for n, name in enumerate(rois, start=1)
    ]
    header.ROIContourSequence = [
        item(ReferencedROINumber=n, ContourSequence=list(contours)) for n, contours in enumerate(rois.values(), start=1)
    ]
    header.RTROIObservationsSequence = [
        item(ObservationNumber=n, ReferencedROINumber=n, **({"RTROIInterpretedType": "GTV"} | observation))
        for n in range(1, len(rois) + 1)
    ]
    return header
