"""Small CT files for the tests of the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

MakeCt = Callable[..., list[Path]]
MakeEnhancedCt = Callable[..., Path]


def new_uid(*parts: object) -> str:
    """The same UID for the same parts."""
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def ct_dataset(name: str, rows: int, columns: int) -> Dataset:
    """A CT data set of one patient, study and series called ``name``, with all but place and pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.PatientID = f"ID-{name}"
    dataset.PatientName = f"Name^{name}"
    dataset.PatientSex = "F"
    dataset.PatientAge = "062Y"
    dataset.StudyDate = "20200131"
    dataset.StudyInstanceUID = new_uid(name, "study")
    dataset.SeriesInstanceUID = new_uid(name, "series")
    dataset.FrameOfReferenceUID = new_uid(name, "frame of reference")
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.8, 0.7]
    dataset.SliceThickness = 3
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.WindowCenter, dataset.WindowWidth = [40, -600], [400, 1500]
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or new_uid(path.name))
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def make_ct() -> MakeCt:
    """``make_ct(folder, hu, name="p", ...)`` writes a series; slice k of ``hu`` (n, rows, columns) lies at ``z[k]``."""

    def make(
        folder: Path,
        hu: npt.ArrayLike,
        *,
        name: str = "p",
        z: Sequence[float] | None = None,
        edit: Callable[[Dataset, int], Any] | None = None,
    ) -> list[Path]:
        volume = np.asarray(hu)
        places = [2.0 * k for k in range(len(volume))] if z is None else z
        paths = []
        for k, (image, place) in enumerate(zip(volume, places, strict=True)):
            dataset = ct_dataset(name, *image.shape)
            dataset.SOPInstanceUID = new_uid(name, "image", k)
            dataset.InstanceNumber = len(volume) - k  # counts towards the feet
            dataset.ImagePositionPatient = [-100.0, -120.0, float(place)]
            dataset.PixelData = (image + 1024).astype("<u2").tobytes()
            if edit is not None:
                edit(dataset, k)
            # File names say nothing of the order.
            paths.append(save(dataset, folder / f"{(k * 7) % 101:03d}-{name}-{k}"))
        return paths

    return make


@pytest.fixture
def make_enhanced_ct() -> MakeEnhancedCt:
    """``make_enhanced_ct(path, hu, z, slopes)`` writes Enhanced CT whose frames have slopes of their own."""

    def make(path: Path, hu: npt.ArrayLike, z: Sequence[float], slopes: Sequence[float], name: str = "e") -> Path:
        volume = np.asarray(hu)
        dataset = ct_dataset(name, *volume.shape[1:])
        for keyword in ("ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType"):
            del dataset[keyword]
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedCTImageStorage
        dataset.SOPInstanceUID = new_uid(name, "image")
        dataset.NumberOfFrames = len(volume)
        shared, measures, orientation = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, orientation.ImageOrientationPatient = [0.8, 0.7], [1, 0, 0, 0, 1, 0]
        shared.PixelMeasuresSequence = DicomSequence([measures])
        shared.PlaneOrientationSequence = DicomSequence([orientation])
        dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
        frames = []
        for place, slope in zip(z, slopes, strict=True):
            frame, position, rescale = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = [-100.0, -120.0, float(place)]
            rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, -1024, "HU"
            frame.PlanePositionSequence = DicomSequence([position])
            frame.PixelValueTransformationSequence = DicomSequence([rescale])
            frames.append(frame)
        dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
        stored = [np.rint((image + 1024.0) / slope) for image, slope in zip(volume, slopes, strict=True)]
        dataset.PixelData = np.stack(stored).astype("<u2").tobytes()
        return save(dataset, path)

    return make
