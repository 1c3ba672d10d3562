"""The phantom's parts: noise, contrast, truth on the image, shapes, kinds, the hand that marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from data_prep import frames
from data_prep.lesion import COARSE_TYPES
from data_prep.phantom import hospital, radiologist, scanner
from data_prep.phantom.anatomy import PHASES, Anatomy, Organ
from data_prep.phantom.dicom_series import phantom_uid
from data_prep.phantom.kinds import KINDS
from data_prep.phantom.lesions import SHORT_AXIS_RATIO, place_lesions, sample_lesion, true_outline_px
from data_prep.phantom.shapes import Canvas, Pose, Warp, capsule, ellipse_column, ellipsoid

# --- one patient's scan, with and without noise --------------------------------------------------------------------


def quiet_and_noisy(seed: int) -> tuple[Anatomy, Any, Any, Any, list[Any]]:
    rng = np.random.default_rng(seed)
    body = Anatomy.sample(rng)
    levels = [-110.0, -75.0, -40.0]
    lesions = place_lesions(rng, body, scanner.plan_canvas(body, levels), levels, [3, 3, 3])
    protocol = scanner.sample_protocol(rng, body, True, -60.0)
    noisy = scanner.scan(np.random.default_rng(1), body, lesions, 0, protocol)
    quiet = scanner.scan(np.random.default_rng(1), body, lesions, 0, protocol, noise=False)
    without = scanner.scan(np.random.default_rng(1), body, [], 0, protocol, noise=False)
    return body, noisy, quiet, without, lesions


@pytest.fixture(scope="module")
def scans() -> list[tuple[Anatomy, Any, Any, Any, list[Any]]]:
    return [quiet_and_noisy(seed) for seed in (0, 1)]


def test_noise_in_soft_tissue(scans: list[Any]) -> None:
    for _, noisy, quiet, _, _ in scans:
        soft = (quiet.hu > 0) & (quiet.hu < 200)
        inner = ndimage.binary_erosion(soft, iterations=1)
        noise = noisy.hu.astype(float) - quiet.hu
        assert noise[inner].std() >= 12
        # Correlated in plane (the kernel), not between slices.
        sideways = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
        between = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
        assert sideways > 0.15
        assert abs(between) < 0.02


def test_contrast_in_soft_tissue(scans: list[Any]) -> None:
    """Inside minus a ring of the same slice of the lesion-free patient, where the ring is one soft tissue."""
    measured = 0
    for _, _, quiet, without, _ in scans:
        for index, found in quiet.seen.items():
            for seen in found.values():
                kind = seen.lesion.kind
                if kind.contrast_hu is None or seen.diameters_mm[1] < 8:
                    continue
                change = quiet.hu[index].astype(float) - without.hu[index]
                x, y = np.floor(seen.outline_px.mean(axis=0)).astype(int)
                core = change[y - 1 : y + 2, x - 1 : x + 2]
                host = without.hu[index][y - 1 : y + 2, x - 1 : x + 2]
                if host.std() > 4:  # a vessel or an edge runs through
                    continue
                measured += 1
                # A rim makes the core up to half its height darker than the mean.
                assert -60 - 8 <= core.mean() <= -15
    assert measured >= 5


def test_truth_lies_on_the_lesion(scans: list[Any]) -> None:
    """The lesion changes the image inside its box and nowhere else."""
    for _, _, quiet, without, _ in scans:
        difference = np.abs(quiet.hu.astype(int) - without.hu)
        for index, found in quiet.seen.items():
            covered = np.zeros((256, 256), bool)
            for seen in found.values():
                x0, y0, x1, y1 = frames.box_from_recist(seen.recist_px)
                inside = (slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1))))
                assert difference[index][inside].max() > 15
                covered[inside] = True
            # What reaches out of the boxes are lesions that only graze the slice.
            assert np.mean(difference[index][~covered] > 15) < 0.004


def test_attenuation_of_organs() -> None:
    body = Anatomy.sample(np.random.default_rng(3))
    x = np.arange(-180, 180, 3.0)
    canvas = Canvas(x, x, np.array([-100.0, -60.0, 20.0, 60.0]), Pose((0.0, 0.0, 0.0), 0.0), body.warp)
    scanner.draw_patient(canvas, body, PHASES[0])
    expected = {
        Organ.LUNG: (-900, -700),
        Organ.LIVER: (50, 66),
        Organ.SPLEEN: (42, 58),
        Organ.KIDNEY: (25, 50),
        Organ.SUBCUTANEOUS_FAT: (-115, -90),
        Organ.MUSCLE: (40, 65),
        Organ.BLOOD: (35, 60),
        Organ.VERTEBRA: (150, 420),
    }
    for organ, (low, high) in expected.items():
        values = canvas.hu[canvas.label == organ]
        assert len(values) > 20, organ.name
        assert low < np.median(values) < high, organ.name


def test_about_half_of_the_lesions_are_marked() -> None:
    """On the phantom's own lesion counts, without rendering: one of n at each level."""
    counts, chances = zip(*hospital.LESIONS_PER_LEVEL, strict=True)
    assert sum(chances) == pytest.approx(1)
    assert 1 / float(np.dot(counts, chances)) == pytest.approx(0.5, abs=0.05)


def test_kinds_cover_five_official_types() -> None:
    assert len({kind.coarse_type for kind in KINDS}) >= 5
    assert {kind.coarse_type for kind in KINDS} <= set(COARSE_TYPES)
    assert sum(kind.weight for kind in KINDS) > 0
    for kind in KINDS:
        assert (kind.contrast_hu is None) != (kind.level_hu is None)
        if kind.contrast_hu is not None:
            assert all(15 <= abs(hu) <= 60 for hu in kind.contrast_hu)
        if "node" in kind.name:  # a node is enlarged from a short axis of 10 mm
            assert kind.long_mm[1] * SHORT_AXIS_RATIO[0] > 10


# --- pieces --------------------------------------------------------------------------------------------------------


def flat_canvas() -> Canvas:
    axis = np.arange(-40.0, 40.0, 1.0)
    return Canvas(axis, axis, axis, Pose((0.0, 0.0, 0.0), 0.0), None)


def test_signed_distances() -> None:
    canvas = flat_canvas()
    w = canvas.everything()
    at = {name: np.searchsorted(canvas.axes_mm[0], 0.0) for name in "xyz"}
    centre = (at["z"], at["y"], at["x"])
    ball = ellipsoid(w, (0.0, 0.0, 0.0), (10.0, 10.0, 10.0))
    np.testing.assert_allclose(ball[centre[0], centre[1], :], np.abs(canvas.axes_mm[0]) - 10, atol=1e-3)
    column = ellipse_column(w, (0.0, 0.0), (20.0, 10.0))
    assert column[0, centre[1], centre[2] + 20] == pytest.approx(0, abs=1e-3)
    assert column[-1, centre[1] + 10, centre[2]] == pytest.approx(0, abs=1e-3)
    rod = capsule(w, (-10.0, 0.0, 0.0), (10.0, 0.0, 0.0), 3.0, 3.0)
    assert rod[centre[0], centre[1] + 5, centre[2]] == pytest.approx(2, abs=1e-3)
    assert rod[centre[0], centre[1], centre[2] + 20] == pytest.approx(7, abs=1e-3)


def test_painted_volume_is_the_solid_volume() -> None:
    canvas = flat_canvas()
    w = canvas.window((1.3, -2.7, 0.4), (20.0, 20.0, 20.0))
    assert w is not None
    cover = canvas.paint(w, ellipsoid(w, (1.3, -2.7, 0.4), (15.0, 12.0, 9.0)), 60.0, 3)
    assert cover.sum() == pytest.approx(4 / 3 * np.pi * 15 * 12 * 9, rel=0.02)
    assert canvas.hu.max() == pytest.approx(60.0)
    assert np.count_nonzero(canvas.label == 3) == pytest.approx(cover.sum(), rel=0.03)
    assert canvas.window((500.0, 0.0, 0.0), (5.0, 5.0, 5.0)) is None


def test_windows_hold_their_solids_when_turned_and_warped() -> None:
    axis = np.arange(-100.0, 100.0, 2.0)
    canvas = Canvas(axis, axis, axis, Pose((5.0, -7.0, 3.0), 0.05), Warp(np.random.default_rng(0)))
    for centre in ((60.0, 10.0, -20.0), (-50.0, 40.0, 50.0)):
        w = canvas.window(centre, (20.0, 20.0, 20.0))
        assert w is not None
        everywhere = ellipsoid(canvas.everything(), centre, (20.0, 20.0, 20.0)) < 0
        windowed = ellipsoid(w, centre, (20.0, 20.0, 20.0)) < 0
        assert everywhere.sum() == windowed.sum() > 0


def test_outline_of_a_known_disc() -> None:
    y, x = np.mgrid[:64, :64] + 0.5
    cover = np.clip(0.5 - (np.hypot(x - 30.2, y - 20.9) - 9.0), 0, 1).astype(np.float32)
    outline = true_outline_px(cover, (0.8, 0.8))
    assert outline is not None
    np.testing.assert_allclose(np.hypot(*(outline - [30.2, 20.9]).T), 9.0, atol=0.1)
    assert true_outline_px(cover, (0.1, 0.1)) is None  # 1.8 mm: not visible
    assert true_outline_px(np.zeros((8, 8), np.float32), (1.0, 1.0)) is None


def test_lesion_has_its_stated_size() -> None:
    sizes = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        lesion = sample_lesion(rng, 1, 0, KINDS[0], (0.0, 0.0, 0.0), 30.0, 99.0)
        canvas = flat_canvas()
        canvas.label[:] = Organ.LIVER
        canvas.hu[:] = 100.0
        painted = lesion.draw(canvas, 0 if lesion.sizes[0] else 1)
        assert painted is not None
        outline = true_outline_px(painted[1].max(axis=0), (1.0, 1.0))
        assert outline is not None
        sizes.append(np.ptp(outline, axis=0).max())
        low = float(canvas.hu.min())
        assert 100 - 60 - 7.5 <= low <= 100 - 15
    assert np.mean(sizes) == pytest.approx(30, rel=0.15)


def test_a_hand_is_a_little_off() -> None:
    axes = np.array([[38.0, 60.0], [62.0, 60.0], [50.0, 53.0], [50.0, 67.0]])
    seen = scanner.Seen(None, axes, axes, (36.0, 21.0))  # type: ignore[arg-type]
    drawn = [radiologist.draw(np.random.default_rng(k), 3, seen) for k in range(100)]
    off = np.array([mark.points_px - axes for mark in drawn])
    assert off.std() == pytest.approx(radiologist.JITTER_PX, rel=0.1)
    assert abs(off.mean()) < 0.1


def test_the_longer_axis_comes_first() -> None:
    axes = np.array([[40.0, 60.0], [60.0, 60.0], [50.0, 50.0], [50.0, 70.0]])
    seen = scanner.Seen(None, axes, axes, (20.0, 20.0))  # type: ignore[arg-type]
    drawn = [radiologist.draw(np.random.default_rng(k), 3, seen).points_px for k in range(20)]
    assert all(np.hypot(*(p[1] - p[0])) >= np.hypot(*(p[3] - p[2])) for p in drawn)
    assert {bool(abs(p[0, 0] - 40) < 3) for p in drawn} == {True, False}


def test_uids_depend_on_seed_and_place() -> None:
    assert phantom_uid(0, 1, 2) == phantom_uid(0, 1, 2)
    assert len({phantom_uid(0, 1, 2), phantom_uid(1, 1, 2), phantom_uid(0, 12), phantom_uid(0, 1, "2x")}) == 4
    assert phantom_uid(0, 1).is_valid
