"""CT Image Storage objects (PS3.3 A.3) of a phantom series."""

from __future__ import annotations

import datetime
import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from data_prep.phantom.scanner import HU_RANGE, MATRIX, ORIENTATION, Protocol, Scan

RESCALE_INTERCEPT = HU_RANGE[0]

_NAMESPACE = uuid.UUID("5d1f1d5c-3a6e-4d0a-9a6e-3f0c1b7f2a10")


def phantom_uid(seed: int, *parts: object) -> UID:
    """A UID below 2.25 (PS3.5 B.2) from a version 5 UUID of the seed and the object's place in the hospital."""
    name = "/".join(map(str, (seed, *parts)))
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")


@dataclass(frozen=True)
class Study:
    """Who and when; what every object of one study shares."""

    seed: int
    patient: int  # 1-based
    study: int  # 1-based
    sex: str
    birth_date: datetime.date
    created: datetime.datetime

    @property
    def series_name(self) -> str:
        """``PPPPPP_SS_RR`` as DeepLesion names a series; each study here has one."""
        return f"{self.patient:06d}_{self.study:02d}_01"

    @property
    def patient_id(self) -> str:
        """The invented PatientID, e.g. ``PHANTOM0001``."""
        return f"PHANTOM{self.patient:04d}"

    @property
    def age(self) -> int:
        """Whole years on the day of the study."""
        born, day = self.birth_date, self.created.date()
        return day.year - born.year - ((day.month, day.day) < (born.month, born.day))

    def uid(self, *parts: object) -> UID:
        """A UID for an object of this study."""
        return phantom_uid(self.seed, self.patient, self.study, *parts)


def slice_number(index: int) -> int:
    """0-based slice index towards +S -> the 1-based number in ``Images_png`` file names."""
    return index + 1


def build_series(study: Study, scan: Scan) -> Iterator[Dataset]:
    """The CT images by slice index (0-based, towards +S), ready for :meth:`Dataset.save_as`.

    InstanceNumber runs the other way, from head to feet, as scanners count.
    """
    p = scan.protocol
    # pydicom keeps what it has read and nobody touched as bytes: reading a template again for every slice is several
    # times faster than encoding all elements anew.
    buffer = io.BytesIO()
    _shared(study, p).save_as(buffer, enforce_file_format=True)
    template = buffer.getvalue()
    for index in range(len(scan.hu)):
        ds = pydicom.dcmread(io.BytesIO(template))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = study.uid("ct", index)
        ds.InstanceNumber = len(scan.hu) - index
        corner, z = f"{p.x_mm[0]:.6f}", f"{p.first_z_mm + index * p.slice_mm:.6f}"
        ds.ImagePositionPatient = [corner, corner, z]
        ds.SliceLocation = z
        stored = scan.hu[index].astype(np.int32) - RESCALE_INTERCEPT
        ds.add_new("PixelData", "OW", stored.astype("<u2").tobytes())
        yield ds


def _shared(study: Study, p: Protocol) -> Dataset:
    """All that the slices of a series have in common."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = study.uid("ct")
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    _patient_and_study(ds, study)
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = ds.StudyDate
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = ds.StudyTime
    ds.Modality = "CT"
    ds.Manufacturer = "lesion-bookmarks"
    ds.ManufacturerModelName = "Synthetic phantom"
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = "1"
    ds.SeriesDescription = f"{p.phase.name}, {p.slice_mm:g} mm"
    ds.BodyPartExamined = "CHESTABDOMEN"
    ds.SeriesInstanceUID = study.uid("ct")
    ds.SeriesNumber = 1
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = study.uid("frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.AcquisitionNumber = 1
    if p.phase.name != "native":
        ds.ContrastBolusAgent = "Iodinated contrast medium"
        ds.ContrastBolusRoute = "IV"
    ds.KVP = "120"
    ds.ConvolutionKernel = f"SOFT{p.kernel_px:.2f}"

    ds.ImageOrientationPatient = [f"{v:g}" for v in ORIENTATION]
    ds.SliceThickness = f"{p.slice_mm:g}"
    ds.SpacingBetweenSlices = f"{p.slice_mm:g}"
    ds.PixelSpacing = [f"{p.spacing_mm:.4f}"] * 2
    ds.Rows = ds.Columns = MATRIX
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept = str(RESCALE_INTERCEPT)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = "50", "400"
    return ds


def _patient_and_study(ds: Dataset, study: Study) -> None:
    ds.PatientName = f"PHANTOM^{study.patient:04d}"
    ds.PatientID = study.patient_id
    ds.PatientBirthDate = study.birth_date.strftime("%Y%m%d")
    ds.PatientSex = study.sex
    ds.PatientAge = f"{study.age:03d}Y"
    ds.StudyInstanceUID = study.uid()
    ds.StudyDate = study.created.strftime("%Y%m%d")
    ds.StudyTime = study.created.strftime("%H%M%S")
    ds.ReferringPhysicianName = ""
    ds.StudyID = f"{study.patient:04d}{study.study}"
    ds.AccessionNumber = f"PH{study.patient:04d}{study.study}"
    ds.StudyDescription = "CT chest and abdomen"


def write_series(study: Study, scan: Scan, folder: Path) -> dict[int, Dataset]:
    """Write every slice as ``IMnnnn.dcm`` by InstanceNumber; returns the datasets by slice index."""
    folder.mkdir(parents=True)
    out = {}
    for index, ds in enumerate(build_series(study, scan)):
        ds.save_as(folder / f"IM{ds.InstanceNumber:04d}.dcm", enforce_file_format=True)
        out[index] = ds
    return out
