"""Reader for DICOM segmentations: binary, fractional (inside from half of the maximum on) and label maps.

One bookmark per lesion, on the slice where its long diameter is greatest: the regions of a segment that overlap from
slice to slice are one lesion. Its outline lies in the frame of the source image. With ``images`` the mask's own
geometry is compared with the image's and the outline moved onto the image where they differ; without, the mask's grid
is taken to be the image's, as the standard's derivation from a source image suggests, and ``source_frame`` says
"assumed". A segment that software made (Segment Algorithm Type AUTOMATIC) has the source ``detector``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels

from data_prep.archive.volume import extended_offsets, why_not_decoded
from data_prep.bookmark import DETECTOR, Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.frames import Array
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._masks import KeySlice, Piece, key_slice, lesions, pieces_of_mask
from data_prep.readers._planes import (
    MASK_DAMAGE,
    ImageLookup,
    Plane,
    Reference,
    code_or_none,
    make_plane,
    nearest_image,
    plane_of_image,
    text_or_none,
)
from data_prep.readers.dicom_kind import load_dataset, sop_class_uid

SOURCE = "dicom-seg"
USES_IMAGES = True

_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)

_MAX_FILE_BYTES = 1 << 30
_MAX_ITEMS = 1_000_000
_MAX_FRAME_PIXELS = 1 << 26  # 8192 x 8192
_MAX_ENCAPSULATED_PIXELS = 1 << 31  # 8192 frames of 512 x 512: compressed frames may be stated without being there
_SAME_GRID_PX = 0.02


def recognise(head: bytes, path: Path) -> bool:
    """Whether the file is a DICOM segmentation or label map."""
    return sop_class_uid(path) in _SOP_CLASSES


@dataclass(slots=True)
class _Frame:
    number: int  # 1-based
    segments: tuple[int, ...]
    references: list[Reference]
    plane: Plane | None
    spacing_mm: tuple[float, float] | None  # x, y
    slot: int = 0


def read(path: Path, images: ImageLookup | None = None) -> Iterator[Bookmark | Rejection]:
    """Every lesion of the segmentation.

    Args:
        path: the file.
        images: where the source images can be looked up; used to check and correct the placement.

    Raises:
        UnreadableError: not a segmentation, damaged, or its pixel data is not what its header says.
    """
    with quiet_pydicom():
        found = list(_read(path, images))
    yield from found


def _read(path: Path, images: ImageLookup | None) -> Iterator[Bookmark | Rejection]:
    dataset = load_dataset(path, max_bytes=_MAX_FILE_BYTES, max_items=_MAX_ITEMS)
    try:
        _check_size(dataset, path)
        _check_codestreams(dataset, path)
        segments = _segments(dataset)
        found = _frames(dataset, path, tuple(segments), images)
        pieces = _pieces(dataset, found)
    except UnreadableError:
        raise
    except MASK_DAMAGE as error:
        raise UnreadableError(f"{path}: the segmentation is damaged ({type(error).__name__})") from error
    for number in sorted(set(pieces) | set(segments)):
        segment = segments.get(number)
        if segment is None:
            yield Rejection("", f"segment {number}", "the segment is in the pixel data but is not described")
            continue
        try:
            yield from _segment(dataset, number, segment, pieces.get(number, []), found, images)
        except MASK_DAMAGE as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            yield Rejection("", f"segment {number}", f"the segment cannot be used: {reason}")


def _check_size(dataset: pydicom.Dataset, path: Path) -> None:
    """Compare the stated size with the pixel data that is there, before anything is allocated."""
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    if rows < 1 or columns < 1 or count < 1 or rows * columns > _MAX_FRAME_PIXELS:
        raise UnreadableError(f"{path}: {count} frames of {columns} x {rows} pixels cannot be a segmentation")
    if "PixelData" not in dataset or int(dataset.SamplesPerPixel) != 1:
        raise UnreadableError(f"{path}: the segmentation has no pixel data of one sample a pixel")
    pixels = rows * columns * count
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        if pixels > _MAX_ENCAPSULATED_PIXELS:
            raise UnreadableError(f"{path}: {count} compressed frames of {columns} x {rows} pixels are too many")
    elif (pixels * int(dataset.BitsAllocated) + 7) // 8 > len(dataset.PixelData):
        raise UnreadableError(f"{path}: the pixel data is shorter than {count} frames of {columns} x {rows} pixels")
    # More descriptions than frames are met in files cut down to a few frames; the first ones are theirs.
    if len(dataset.get("PerFrameFunctionalGroupsSequence") or ()) < count:
        raise UnreadableError(f"{path}: the frames are not described one by one")


def _check_codestreams(dataset: pydicom.Dataset, path: Path) -> None:
    """Compare the size that each compressed frame states with the header's, before any is decoded."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    shape, count = (int(dataset.Rows), int(dataset.Columns)), int(dataset.get("NumberOfFrames") or 1)
    offsets = extended_offsets(dataset)
    streams = generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
    for number, stream in enumerate(streams, start=1):
        reason = why_not_decoded(stream, syntax, shape)
        if reason is not None:
            raise UnreadableError(f"{path}: frame {number} is not decoded: {reason}")


def _segments(dataset: pydicom.Dataset) -> dict[int, pydicom.Dataset]:
    padding = dataset.get("PixelPaddingValue") if _is_labelmap(dataset) else 0
    described = {int(item.SegmentNumber): item for item in dataset.get("SegmentSequence") or ()}
    return {number: item for number, item in described.items() if number not in (0, padding)}


def _is_labelmap(dataset: pydicom.Dataset) -> bool:
    return text_or_none(dataset, "SegmentationType") == "LABELMAP"


# --- frames --------------------------------------------------------------------------------------------------------


def _frames(dataset: pydicom.Dataset, path: Path, segments: Sequence[int], images: ImageLookup | None) -> list[_Frame]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    in_series = _series_references(dataset)
    size = int(dataset.Rows), int(dataset.Columns)
    found = []
    step_mm = None
    count = int(dataset.get("NumberOfFrames") or 1)
    for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence[:count], start=1):

        def group(keyword: str, groups: pydicom.Dataset = groups) -> pydicom.Dataset:
            items = groups.get(keyword) or shared.get(keyword)
            return items[0] if items else pydicom.Dataset()

        measures = group("PixelMeasuresSequence")
        stated = measures.get("PixelSpacing")
        spacing = None if stated is None or len(stated) != 2 else (float(stated[1]), float(stated[0]))
        if spacing is not None and not (0 < spacing[0] < 1e4 and 0 < spacing[1] < 1e4):
            spacing = None
        step_mm = step_mm or abs(float(measures.get("SpacingBetweenSlices") or 0)) or None
        plane = make_plane(
            group("PlanePositionSequence").get("ImagePositionPatient"),
            group("PlaneOrientationSequence").get("ImageOrientationPatient"),
            spacing or (None, None),
            size,
        )
        segment = group("SegmentIdentificationSequence").get("ReferencedSegmentNumber")
        own = (int(segment),) if segment is not None and not _is_labelmap(dataset) else tuple(segments)
        if not _is_labelmap(dataset) and segment is None:
            if len(segments) != 1:
                raise UnreadableError(f"{path}: frame {number} does not say which segment it shows")
            own = tuple(segments)
        references = _references(groups) or _references(shared)
        if plane is not None and images is not None and len(references) != 1:
            centre = plane.to_lps(np.array([[size[1] / 2, size[0] / 2]]))[0]
            nearest = nearest_image(images, references or in_series, centre)
            references = [nearest] if nearest is not None else references
        found.append(_Frame(number, own, references, plane, spacing))
    _place(found, step_mm)
    return found


def _references(groups: pydicom.Dataset) -> list[Reference]:
    """The source images a frame is derived from, in order, each once."""
    references: dict[Reference, None] = {}
    for derivation in groups.get("DerivationImageSequence") or ():
        for source in derivation.get("SourceImageSequence") or ():
            uid = text_or_none(source, "ReferencedSOPInstanceUID")
            number = source.get("ReferencedFrameNumber")
            if uid:
                if isinstance(number, (list, pydicom.multival.MultiValue)):
                    number = number[0] if len(number) == 1 else None
                references[(uid, int(number) if number else None)] = None
    return list(references)


def _series_references(dataset: pydicom.Dataset) -> list[Reference]:
    """All images of the object's Common Instance Reference: candidates for frames that name none."""
    return [
        (uid, None)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
        if (uid := text_or_none(instance, "ReferencedSOPInstanceUID"))
    ]


def _place(found: list[_Frame], step_mm: float | None) -> None:
    """Number the frames' slices along the normal; places more than 1.5 steps apart are not neighbours.

    Without a stated SpacingBetweenSlices a step is the smallest distance between two frames. Frames without a
    position are neighbours of none.
    """
    placed = [frame for frame in found if frame.plane is not None]
    normal = placed[0].plane.normal if placed and placed[0].plane is not None else np.zeros(3)
    along = {f.number: float(f.plane.affine[:3, 3] @ normal) for f in placed if f.plane is not None}
    levels = sorted({round(value, 3) for value in along.values()})
    gaps = np.diff(levels)
    gaps_wide = gaps[gaps > 0.01]
    step = step_mm or (float(gaps_wide.min()) if len(gaps_wide) else 1.0)
    slots, slot = {}, 0
    for index, level in enumerate(levels):
        gap = gaps[index - 1] if index else 0.0
        slot += 0 if gap <= 0.01 else 1 if gap <= 1.5 * step else 2
        slots[level] = slot
    for frame in found:
        if frame.number in along:
            frame.slot = slots[round(along[frame.number], 3)]
        else:
            slot += 2
            frame.slot = slot


def _pieces(dataset: pydicom.Dataset, found: list[_Frame]) -> dict[int, list[Piece] | str]:
    """Segment number -> its regions on all frames, or why it has too many; frame by frame."""
    half = 1
    if text_or_none(dataset, "SegmentationType") == "FRACTIONAL":
        half = (int(dataset.get("MaximumFractionalValue") or 255) + 1) // 2
    pieces: dict[int, list[Piece] | str] = defaultdict(list)
    for frame, values in zip(found, iter_pixels(dataset, raw=True), strict=True):
        for number in _numbers(dataset, frame, values):
            known = pieces[number]
            if isinstance(known, str):
                continue
            try:
                inside = values == number if _is_labelmap(dataset) else values >= half
                known.extend(pieces_of_mask(inside, slot=frame.slot, tag=frame.number - 1))
            except ValueError as error:
                pieces[number] = str(error)
    return pieces


def _numbers(dataset: pydicom.Dataset, frame: _Frame, values: npt.NDArray[np.generic]) -> Sequence[int]:
    if not _is_labelmap(dataset):
        return frame.segments
    background = {0, int(dataset.get("PixelPaddingValue") or 0)}
    return [int(value) for value in np.unique(values) if int(value) not in background]


# --- bookmarks -----------------------------------------------------------------------------------------------------


def _segment(
    dataset: pydicom.Dataset,
    number: int,
    segment: pydicom.Dataset,
    pieces: list[Piece] | str,
    found: list[_Frame],
    images: ImageLookup | None,
) -> Iterator[Bookmark | Rejection]:
    if isinstance(pieces, str):
        raise ValueError(pieces)
    if not pieces:
        yield Rejection("", f"segment {number}", "the segment is empty: no pixel is set")
        return
    for lesion in lesions(pieces):
        spacing = found[lesion[0].tag].spacing_mm or (1.0, 1.0)
        key = key_slice(lesion, spacing)
        frame = found[key.tag]
        row = f"segment {number} frame {frame.number}"
        if len(frame.references) != 1 and not (frame.references and images is None):
            reason = "names no source image" if not frame.references else "names several source images"
            hint = "; harvest with --images" if images is None else ", and none of the images given lies there"
            yield Rejection("", row, f"the frame {reason}{hint}")
            continue
        try:
            yield _bookmark(dataset, number, segment, key, frame, images)
        except ValueError as error:
            yield Rejection("", row, str(error))


def _bookmark(
    dataset: pydicom.Dataset,
    number: int,
    segment: pydicom.Dataset,
    key: KeySlice,
    frame: _Frame,
    images: ImageLookup | None,
) -> Bookmark:
    uid, frame_number = frame.references[0]
    size = int(dataset.Rows), int(dataset.Columns)
    outline, placement = _on_image(key.outline_px, frame, size, images)
    notes = [f"long diameter greatest here, of {key.slices} slices", placement]
    if len(frame.references) > 1:
        notes.append(f"the first of {len(frame.references)} source images is taken")
    moved = placement is not None and "moved" in placement
    points = tuple(float(value) for value in np.round(outline, 6).ravel())
    anatomy = (segment.get("AnatomicRegionSequence") or [pydicom.Dataset()])[0]
    instance = text_or_none(dataset, "SOPInstanceUID") or text_or_none(dataset.file_meta, "MediaStorageSOPInstanceUID")
    return Bookmark(
        bookmark_id=make_id(SOURCE, instance, number, frame.number, "segmentation", *np.round(key.outline_px, 3).flat),
        source=DETECTOR if text_or_none(segment, "SegmentAlgorithmType") == "AUTOMATIC" else SOURCE,
        form="segmentation",
        points_px=points,
        source_frame="assumed" if placement is not None and not moved else "declared",
        text=text_or_none(segment, "SegmentLabel"),
        finding_code=code_or_none(segment.get("SegmentedPropertyTypeCodeSequence")),
        tracking_uid=text_or_none(segment, "TrackingUID"),
        site=code_or_none(segment.get("AnatomicRegionSequence")),
        laterality=code_or_none(anatomy.get("AnatomicRegionModifierSequence")),
        patient_id=text_or_none(dataset, "PatientID"),
        study_uid=text_or_none(dataset, "StudyInstanceUID"),
        series_uid=_source_series(dataset, uid),
        image_uid=uid,
        frame_number=frame_number,
        rows=None if moved else size[0],
        columns=None if moved else size[1],
        spacing_x_mm=None if moved or frame.spacing_mm is None else frame.spacing_mm[0],
        spacing_y_mm=None if moved or frame.spacing_mm is None else frame.spacing_mm[1],
        observer=text_or_none(dataset, "ContentCreatorName"),
        note="; ".join(filter(None, notes)),
    )


def _on_image(
    outline_px: Array, frame: _Frame, size: tuple[int, int], images: ImageLookup | None
) -> tuple[Array, str | None]:
    """The outline on the source image, and what had to be assumed or done (None: the grids are the same).

    Raises:
        ValueError: the mask does not lie in the image's plane.
    """
    image = None if images is None else images.find(*frame.references[0])
    if image is None:
        return outline_px, "the mask's grid is taken to be the image's"
    plane = plane_of_image(image)
    if plane is None or frame.plane is None:
        if (image.rows, image.columns) != size:
            raise ValueError("the mask and its image differ in size, and their places in the patient are not stated")
        return outline_px, "the mask's grid is taken to be the image's: one of them has no position"
    moved, off_mm = plane.to_px(frame.plane.to_lps(outline_px))
    if float(np.abs(off_mm).max()) > plane.tolerance_mm:
        raise ValueError(f"the mask lies {np.abs(off_mm).max():.1f} mm off the plane of the image it names")
    if float(np.abs(moved - outline_px).max()) <= _SAME_GRID_PX and (plane.rows, plane.columns) == size:
        return outline_px, None
    return moved, "moved from the mask's own grid onto the image's"


def _source_series(dataset: pydicom.Dataset, image_uid: str) -> str | None:
    """The series the image is in, as the Common Instance Reference says."""
    for series in dataset.get("ReferencedSeriesSequence") or ():
        for instance in series.get("ReferencedInstanceSequence") or ():
            if text_or_none(instance, "ReferencedSOPInstanceUID") == image_uid:
                return text_or_none(series, "SeriesInstanceUID")
    return None
