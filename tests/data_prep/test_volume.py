"""HU from DICOM files, against ITK's reader, and through every codec that is at hand."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import itk
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from data_prep.archive import volume as volume_module
from data_prep.archive.volume import AIR_HU, codestream_size, read_slice_hu
from data_prep.errors import UnreadableError

MakeCt = Callable[..., list[Path]]


def slice_hu(rows: int = 40, columns: int = 56) -> np.ndarray:
    """(1, rows, columns) noise over the range of CT; nothing in it is symmetric."""
    return np.random.default_rng(3).integers(-1024, 3072, (1, rows, columns))


def with_itk(path: Path) -> np.ndarray:
    """(rows, columns) as ITK's GDCM reads them, slope and intercept applied."""
    reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(path), ImageIO=itk.GDCMImageIO.New())
    reader.Update()
    return np.asarray(itk.array_from_image(reader.GetOutput())[0])


def test_native_pixels_are_exact(tmp_path: Path, make_ct: MakeCt) -> None:
    hu = slice_hu()
    (path,) = make_ct(tmp_path, hu)
    read = read_slice_hu(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, hu[0])
    np.testing.assert_array_equal(read, with_itk(path))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=["RLE", "JPEG2000", "JPEG-LS"])
def test_lossless_codecs_give_the_same_pixels(syntax: str, tmp_path: Path, make_ct: MakeCt) -> None:
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="no JPEG-LS codec: pip install pyjpegls")
    hu = slice_hu()
    (path,) = make_ct(tmp_path, hu)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_slice_hu(path), hu[0])
    np.testing.assert_array_equal(with_itk(path), hu[0])


@pytest.mark.parametrize(
    ("program", "module"), [("dcmcrle", None), ("dcmcjpls", "jpeg_ls"), ("dcmcjpeg", "gdcm")], ids=str
)
def test_what_dcmtk_compressed_is_read_back(
    program: str, module: str | None, shared_data: Path, tmp_path: Path
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install dcmtk")
    if module is not None:
        pytest.importorskip(module, reason=f"no decoder: the package with the module {module} is not installed")
    path = shared_data / "bookmarks" / "aim_xml_and_sr" / "images" / "0022Baseline.dcm"
    subprocess.run([program, str(path), str(tmp_path / "compressed")], check=True, capture_output=True, timeout=60)
    assert pydicom.dcmread(tmp_path / "compressed", specific_tags=[]).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_slice_hu(tmp_path / "compressed"), read_slice_hu(path))


def test_real_jpeg_2000_slices_agree_with_itk(shared_data: Path) -> None:
    for path in sorted((shared_data / "ct" / "totalsegmentator_dicom").iterdir())[::4]:
        np.testing.assert_array_equal(read_slice_hu(path), with_itk(path))


def test_real_slices_with_padding_agree_with_itk_inside_it(shared_data: Path) -> None:
    for path in sorted((shared_data / "bookmarks" / "aim_xml_and_sr" / "images").glob("*.dcm")):
        read, itk_hu = read_slice_hu(path), with_itk(path)
        padding = itk_hu == -2000 - 1024  # PixelPaddingValue 63536, which is -2000 as the signed pixels are read
        assert padding.any()
        np.testing.assert_array_equal(read[~padding], itk_hu[~padding])
        assert (read[padding] == AIR_HU).all()


def test_slope_and_intercept(tmp_path: Path, make_ct: MakeCt) -> None:
    def scale(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-900.25"

    hu = slice_hu()
    (path,) = make_ct(tmp_path, hu, edit=scale)
    np.testing.assert_array_equal(read_slice_hu(path), (hu[0] + 1024) * 0.5 - 900.25)


@pytest.mark.parametrize(("value", "limit", "padded"), [(0, None, [0]), (3, 1, [1, 2, 3]), (65535, None, [65535])])
def test_padding_becomes_air(value: int, limit: int | None, padded: list[int], tmp_path: Path, make_ct: MakeCt) -> None:
    stored = np.array([[[0, 1, 2, 3, 4, 1000, 65535]]])

    def pad(dataset: Dataset, k: int) -> None:
        dataset.PixelPaddingValue = value
        if limit is not None:
            dataset.PixelPaddingRangeLimit = limit

    (path,) = make_ct(tmp_path, stored - 1024, edit=pad)
    expected = np.where(np.isin(stored[0], padded), AIR_HU, stored[0] - 1024)
    np.testing.assert_array_equal(read_slice_hu(path), expected)


def test_frames_of_enhanced_ct_have_their_own_slope(tmp_path: Path, make_enhanced_ct: Callable[..., Path]) -> None:
    hu = np.stack([np.full((6, 8), 100.0), np.full((6, 8), 200.0), np.full((6, 8), -300.0)])
    path = make_enhanced_ct(tmp_path / "e.dcm", hu, [0, 2, 4], [1, 2, 4])
    for number, expected in enumerate(hu, start=1):
        np.testing.assert_array_equal(read_slice_hu(path, number), expected)
    with pytest.raises(UnreadableError, match="there is no frame 4; it has 3"):
        read_slice_hu(path, 4)


def refusing(**changes: Any) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SOPClassUID": MRImageStorage, "Modality": "MR"}, "not a CT image"),
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"RescaleIntercept": ""}, "no RescaleSlope"),
        ({"RescaleSlope": "0"}, "not a number that gives"),
        ({"RescaleType": "Z_EFF"}, "not HU"),
        ({"SamplesPerPixel": 3}, "3 samples of 16 bits"),
        ({"Rows": 4000, "Columns": 4000}, "cut off: 4480 bytes of 32000000"),
        ({"Rows": 65535, "Columns": 65535}, "not that of a CT image"),
        ({"NumberOfFrames": 2_000_000_000}, "cut off"),
        ({"BurnedInAnnotation": "YES"}, "burned into the pixels"),
        ({"PixelData": None}, "no pixel data"),
    ],
)
def test_what_is_not_hu_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path, make_ct: MakeCt) -> None:
    (path,) = make_ct(tmp_path, slice_hu(), edit=refusing(**changes))
    with pytest.raises(UnreadableError, match=reason) as caught:
        read_slice_hu(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_compressed_image_larger_than_its_header_is_not_decoded(tmp_path: Path, make_ct: MakeCt) -> None:
    (path,) = make_ct(tmp_path, slice_hu())
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.Rows, dataset.Columns = 20, 28
    dataset.save_as(path)
    with pytest.raises(UnreadableError, match="compressed image is 40 x 56, the header says 20 x 28"):
        read_slice_hu(path)


def jp2_file(codestream: bytes, rows: int, columns: int) -> bytes:
    """The least JP2 file of 8-bit grey (ISO/IEC 15444-1, annex I)."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    header = box(b"ihdr", struct.pack(">IIHBBBB", rows, columns, 1, 7, 7, 0, 0)) + box(
        b"colr", struct.pack(">BBBI", 1, 0, 0, 17)
    )
    return (
        box(b"jP  ", b"\r\n\x87\n")
        + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
        + box(b"jp2h", header)
        + box(b"jp2c", codestream)
    )


def test_other_ways_to_hide_the_size_of_a_compressed_image(tmp_path: Path, make_ct: MakeCt) -> None:
    """A JP2 file around the code stream, and many samples a pixel; decoded, they would need any amount of memory."""
    (path,) = make_ct(tmp_path, slice_hu())
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    many = stream[:4] + struct.pack(">H", 38 + 3 * 16_000) + stream[6:40] + struct.pack(">H", 16_000)
    for hidden, reason in (
        (jp2_file(stream, 40, 56), "states no size"),
        (many + stream[42:45] * 16_000 + stream[45:], "40 x 56 with 16000 samples a pixel, the header says 40 x 56"),
    ):
        dataset.PixelData = encapsulate([hidden])
        dataset.save_as(path)
        with pytest.raises(UnreadableError, match=reason):
            read_slice_hu(path)


def test_compressed_pixels_without_a_transfer_syntax(tmp_path: Path, make_ct: MakeCt) -> None:
    (path,) = make_ct(tmp_path, slice_hu())
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    data = path.read_bytes()
    path.write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
    with pytest.raises(UnreadableError, match="the file does not say how"):
        read_slice_hu(path)


def test_a_file_that_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no DICOM")
    with pytest.raises(UnreadableError, match="not a DICOM file"):
        read_slice_hu(tmp_path / "text")


def test_a_missing_decoder_is_named(tmp_path: Path, make_ct: MakeCt, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = make_ct(tmp_path, slice_hu())
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)

    class Missing:
        is_available = False

    monkeypatch.setattr(volume_module, "get_decoder", lambda syntax: Missing)
    with pytest.raises(UnreadableError, match=r"JPEG Lossless.*pip install python-gdcm"):
        read_slice_hu(path)


def test_damaged_files_are_refused_or_read_whole(tmp_path: Path, make_ct: MakeCt) -> None:
    (path,) = make_ct(tmp_path, slice_hu())
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(path)
    whole = path.read_bytes()
    generator, refused = random.Random(5), 0
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: generator.randrange(len(data))]
        else:
            for _ in range(8):
                data[generator.randrange(132, len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            read = read_slice_hu(path)
        except UnreadableError:
            refused += 1
        else:
            assert read.ndim == 2
            assert read.size <= volume_module.MAX_PIXELS
    assert refused >= 20


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_slice_hu(tmp_path / "nowhere")


@settings(deadline=None, max_examples=25, derandomize=True)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70))
def test_codestream_size_of_what_opencv_wrote(rows: int, columns: int) -> None:
    _, data = cv2.imencode(".jpg", np.zeros((rows, columns), np.uint8))
    assert codestream_size(data.tobytes()) == (rows, columns, 1)


@pytest.mark.parametrize("marker", [0x00, 0x01, 0xD0, 0xD8, 0xD9, 0xDA, 0x02])
def test_codestream_size_is_not_that_behind_a_marker_without_length(marker: int) -> None:
    """A decoder goes on right behind such a marker, where the true size is; its "length" would lead to another."""
    small, large = (b"\xff\xc0\0\x0b\x08" + struct.pack(">HH", n, n) + b"\1\1\x11\0" for n in (16, 60_000))
    stream = b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", 2 + len(large)) + large + small + bytes(20)
    assert codestream_size(stream) is None
    assert codestream_size(stream[:2] + b"\xff\xfe" + stream[4:]) == (16, 16, 1)  # a comment has a length


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"]))
def test_codestream_size_of_damage(data: bytes, start: bytes) -> None:
    size = codestream_size(start + data)
    assert size is None or len(size) == 3
