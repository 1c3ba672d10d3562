"""Nothing of the patient is in an export: values planted in every header field do not come out."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import MRImageStorage

from tests.data_prep.exports import MakeCt, ct, lesion, run
from tests.data_prep.files import rows_of, tree

CANARY_BY_VR = {
    "DA": "19471103",
    "TM": "031731.271828",
    "DT": "19471103031731.271828",
    "AS": "097Y",
    "UI": "1.2.840.99477.31173.5",
    "PN": "Canarybird^Jane",
    "UR": "http://canarybird.example",
    "AE": "CANARYBIRD",
    "CS": "CANARYBIRD",
    **dict.fromkeys(("LO", "SH", "LT", "ST", "UC", "UT"), "Canarybird"),
    **dict.fromkeys(("OB", "UN"), b"Canarybird\0\0"),
}
CANARIES = (b"canarybird", b"1947", b"031731", b"271828", b"99477", b"31173", b"097", b"97.0")

# What must be right for there to be an image at all; everything else, these too where they are text, is a canary.
STRUCTURE = {
    "SOPClassUID",
    "SpecificCharacterSet",
    "PhotometricInterpretation",
    "PixelData",
    "RescaleType",
    "BurnedInAnnotation",
    "Modality",
    "LossyImageCompression",
}


def plant_canaries(dataset: Dataset, number: int) -> int:
    """Put a canary into every text, date and UID element that DICOM knows, nested and private ones too."""
    count = 0
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or keyword in STRUCTURE or vr not in CANARY_BY_VR or group in (0x0000, 0x0002, 0x0004, 0x0028):
            continue
        if group >= 0x5000 or keyword.startswith(("SharedFunctional", "PerFrameFunctional")):
            continue
        value: Any = CANARY_BY_VR[vr]
        if keyword == "SOPInstanceUID":
            value = f"{value}.{number}"
        dataset.add_new(tag, vr, value)
        count += 1
    nested = Dataset()
    nested.PatientName, nested.ReferencedSOPInstanceUID = CANARY_BY_VR["PN"], CANARY_BY_VR["UI"]
    dataset.ReferencedStudySequence = DicomSequence([nested])
    private = dataset.private_block(0x0041, "Canarybird", create=True)
    private.add_new(1, "LO", "Canarybird")
    private.add_new(2, "UI", CANARY_BY_VR["UI"])
    dataset.file_meta.SourceApplicationEntityTitle = "CANARYBIRD"
    return count


def test_no_canary_leaves_the_archive(tmp_path: Path, make_ct: MakeCt, capfd: pytest.CaptureFixture[str]) -> None:
    planted = []

    def edit(dataset: Dataset, k: int) -> None:
        planted.append(plant_canaries(dataset, k))

    def edit_other(dataset: Dataset, k: int) -> None:
        edit(dataset, 100 + k)
        dataset.SOPClassUID = MRImageStorage
        dataset.Modality = "CANARYBIRD"

    def edit_damaged(dataset: Dataset, k: int) -> None:
        edit(dataset, 200 + k)
        dataset.StudyInstanceUID += ".2"
        dataset.SeriesInstanceUID += ".2"
        dataset.PixelData = dataset.PixelData[:50]

    def edit_retyped(dataset: Dataset, k: int) -> None:
        edit(dataset, 300 + k)
        dataset.SeriesInstanceUID += ".3"
        dataset.RescaleType = "CANARYBIRD"

    archive = tmp_path / "dicom" / "Canarybird^Jane" / "19471103"
    paths = make_ct(archive / "a", ct(6, key=2), edit=edit)
    other = make_ct(archive / "b", ct(2, key=0), edit=edit_other)
    damaged = make_ct(archive / "c", ct(2, key=0), edit=edit_damaged)
    retyped = make_ct(archive / "d", ct(1, key=0), edit=edit_retyped)
    paths[5].write_bytes(paths[5].read_bytes()[:900])
    assert min(planted) > 1000
    stated = {
        "text": "Canarybird",
        "site": "Canarybird",
        "patient_id": "Canarybird",
        "study_uid": CANARY_BY_VR["UI"],
        "series_uid": CANARY_BY_VR["UI"],
        "tracking_uid": CANARY_BY_VR["UI"],
        "finding_code": "Canarybird",
        "patient_sex": "Canarybird",
        "patient_age": 97.0,
        "modality": "CANARYBIRD",
        "note": "Canarybird 19471103",
        "image": "Canarybird/1947.png",
    }
    marks = [lesion(path, f"{i:016x}", **stated) for i, path in enumerate([paths[2], other[0], damaged[0], retyped[0]])]
    summary = run(tmp_path, [*marks, lesion(paths[2], "f" * 16, **{**stated, "image_uid": CANARY_BY_VR["UI"]})])
    assert (summary.lesions, summary.not_exported) == (1, 4)
    assert len(rows_of(tmp_path / "out" / "DL_info.csv")) == 1

    spoken = "".join(capfd.readouterr()) + str(summary).replace(str(tmp_path), "") + repr(summary.reasons)
    seen = {**tree(tmp_path / "out"), "what was printed": spoken.encode()}
    assert len(seen) > 6
    for name, data in seen.items():
        for text in (name.encode(), data, decompressed(data)):
            for canary in CANARIES:
                assert canary not in text.lower(), f"{canary!r} in {name}"
    # The check can fail: the key file, kept apart, holds them.
    assert b"canarybird" in summary.key.read_bytes().lower()


def decompressed(data: bytes) -> bytes:
    """The pixel bytes of a PNG, which may hold nothing but pixels; b"" for other files."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return b""
    at, chunks, pixels = 8, [], b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8])
        if chunks[-1] == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    return zlib.decompress(pixels)
