"""The category cards and their page, on made lesions."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from data_prep.archive.png import write_hu
from data_prep.categorize import page as page_module
from data_prep.categorize.cards import (
    BORDERLINE,
    TYPICAL,
    Card,
    draw_cards,
    frequent_words,
    make_cards,
    picture,
)
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.names import Proposal
from data_prep.categorize.page import write_page
from data_prep.lesion import Lesion

SETTINGS = CropSettings(side_px=64)
HOSTILE = "<script>alert(1)</script> \"' onload=x &amp;"
PATIENT = "SECRET-PATIENT"


def lesion(number: int, **values: Any) -> Lesion:
    facts: dict[str, Any] = {
        "lesion_id": f"id{number:03d}",
        "bookmark_ids": (),
        "source": "csv",
        "image": f"SECRET-SERIES/{number % 4:03d}.png",
        "patient_id": f"{PATIENT}-{number}",
        "rows": 128,
        "columns": 128,
        "spacing_x_mm": 1.0,
        "spacing_y_mm": 1.0,
        "norm_x": 0.02 * number,
        "norm_y": 0.5,
        "norm_z": 0.5,
        "x0": 54.0,
        "y0": 59.0,
        "x1": 74.0,
        "y1": 69.0,
        "long_diameter_mm": 10.0 + number,
    }
    return Lesion(**facts | values)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "SECRET-SERIES").mkdir(parents=True)
    hu = np.full((128, 128), -100.0)
    hu[59:69, 54:74] = 200
    for number in range(4):
        write_hu(folder / f"SECRET-SERIES/{number:03d}.png", hu + number)
    return folder


def line(count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Lesions on a line from 0 to 1, two categories with the centres 0.25 and 0.75."""
    points = np.stack([np.linspace(0, 1, count), np.zeros(count)], axis=1)
    labels = (points[:, 0] > 0.5).astype(np.int32)
    return points, labels, np.array([[0.25, 0.0], [0.75, 0.0]])


def cards_of(lesions: list[Lesion], names: tuple[str, str] = ("lung", "liver")) -> list[Card]:
    points, labels, centroids = line(len(lesions))
    proposals = [Proposal("lung", "lung: 5 of 6 lesions looked at"), Proposal("liver", "why not")]
    return make_cards(lesions, labels, points, centroids, names, proposals)


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_page(lesions: list[Lesion], images: Path, path: Path, names: tuple[str, str] = ("lung", "liver")) -> Reader:
    write_page(cards_of(lesions, names), lesions, images, SETTINGS, f"{len(lesions)} lesions.", path)
    return Reader(path.read_text(encoding="utf-8"))


# --- what a card holds ---------------------------------------------------------------------------------------------


def test_typical_and_borderline() -> None:
    lesions = [lesion(number) for number in range(41)]
    first, second = cards_of(lesions)
    assert len(first.members) + len(second.members) == 41
    assert first.typical[0] == 10  # at 0.25, the centre
    assert sorted(first.typical) == list(range(6, 14)) or len(set(first.typical)) == TYPICAL
    assert max(abs(index - 10) for index in first.typical) == TYPICAL // 2
    assert first.borderline == [(20, 1), (19, 1), (18, 1), (17, 1)]  # towards the other centre
    assert second.borderline[0] == (21, 0)
    assert len(second.borderline) == BORDERLINE
    assert not set(first.typical) & {index for index, _ in first.borderline}


def test_different_patients_are_shown_first() -> None:
    lesions = [lesion(number, patient_id="one" if number < 18 else f"p{number}") for number in range(41)]
    first = cards_of(lesions)[0]
    shown = [lesions[index].patient_id for index in first.typical]
    assert shown[:4] == ["one", "p18", "p19", "p20"]
    assert set(shown[4:]) == {"one"}
    assert first.patients == 4


def test_one_category_has_no_borderline() -> None:
    lesions = [lesion(number) for number in range(12)]
    points = np.zeros((12, 2))
    card = make_cards(lesions, np.zeros(12, np.int32), points, np.zeros((1, 2)), ["all"], [Proposal("all", "why")])[0]
    assert (len(card.typical), card.borderline) == (TYPICAL, [])


def test_an_empty_category_has_an_empty_card(images: Path, tmp_path: Path) -> None:
    """New lesions labelled with an old categoriser need not reach all categories."""
    lesions = [lesion(number) for number in range(3)]
    centroids = np.array([[0.0, 0.0], [9.0, 9.0]])
    proposals = [Proposal("lung", "why"), Proposal("mixed 1", "why")]
    cards = make_cards(lesions, np.zeros(3, np.int32), np.zeros((3, 2)), centroids, ["lung", "mixed 1"], proposals)
    assert (len(cards[1].members), cards[1].patients, cards[1].typical) == (0, 0, [])
    write_page(cards, lesions, images, SETTINGS, "", tmp_path / "page.html")
    draw_cards(cards, lesions, images, SETTINGS, tmp_path / "cards.png")
    assert "0 lesions (0%)" in (tmp_path / "page.html").read_text()


def test_only_words_of_several_patients_are_shown() -> None:
    says = ["liver metastasis", "Liver, 12 mm", "LIVER", "liver Smith", "liver of Smith", "the lesion 4", None]
    lesions = [lesion(number, text=text) for number, text in enumerate(says)]
    assert frequent_words(lesions) == [("liver", 5)]
    assert frequent_words([replace(v, patient_id="p") for v in lesions]) == []
    assert frequent_words([replace(v, patient_id=None) for v in lesions]) == []
    coded = [lesion(number, site="39607008^SCT^Lung structure") for number in range(3)]
    assert frequent_words(coded) == [("lung", 3), ("structure", 3)]


def test_the_box_lies_where_the_lesion_is(images: Path) -> None:
    found = picture(lesion(0), images, SETTINGS, 80)
    assert found is not None
    grey, box = found
    assert grey.shape == (80, 80)
    assert box == pytest.approx((30 / 80, 35 / 80, 50 / 80, 45 / 80))
    x0, y0, x1, y1 = (round(80 * value) for value in box)
    assert grey[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 0.8 > 0.3 > grey[:30].max()
    assert picture(lesion(0, image="../x.png"), images, SETTINGS, 80) is None
    assert picture(lesion(0, image=None), images, SETTINGS, 80) is None


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_cards(images: Path, tmp_path: Path) -> None:
    lesions = [lesion(number, text="hepatic cyst") for number in range(41)]
    path = tmp_path / "page.html"
    reader = make_page(lesions, images, path)
    pictures = reader.all("img")
    assert len(pictures) == 2 * (TYPICAL + BORDERLINE)
    for one in pictures:
        source = one["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        data = np.frombuffer(base64.b64decode(source.split(",", 1)[1]), np.uint8)
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        assert decoded.std() > 20
        assert re.fullmatch(r"(Typical|Borderline) lesion of category [01], \d+ mm, on axial CT", one["alt"] or "")
    for word in (
        "lung",
        "liver",
        "21 lesions (51%)",
        "20 lesions (49%)",
        "hepatic",
        "lung: 5 of 6 lesions",
        "mm, or",
    ):
        assert word in " ".join(reader.text.split()), word
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in reader.all("svg"))
    assert len(reader.all("h1")) == 1
    assert reader.all("html")[0]["lang"] == "en"
    anchors = {link["href"] for link in reader.all("a")}
    assert anchors == {"#category-0", "#category-1"}
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    first = path.read_bytes()
    make_page(lesions, images, path)
    assert path.read_bytes() == first


def test_the_page_needs_nothing_from_outside(images: Path, tmp_path: Path) -> None:
    lesions = [lesion(number) for number in range(10)]
    reader = make_page(lesions, images, tmp_path / "page.html")
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|url\(|@import|//[a-z]", text.split("data:image")[0])
    policy = next(meta for meta in reader.all("meta") if meta.get("http-equiv"))
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_what_data_say_is_text(images: Path, tmp_path: Path) -> None:
    """Hostile words, names and ids end up as text, wherever they are shown."""
    lesions = [
        lesion(number, text="scriptalert " + HOSTILE, lesion_id=f'{number}"><script>', site=f"a^b^{HOSTILE}")
        for number in range(41)
    ]
    reader = make_page(lesions, images, tmp_path / "page.html", (HOSTILE, "liver"))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in reader.text
    figures = [figure["title"] or "" for figure in reader.all("figure")]
    assert any(title.endswith('"><script>') for title in figures)


def test_patients_are_not_told(images: Path, tmp_path: Path) -> None:
    lesions = [lesion(number, text=f"{PATIENT}-{number}") for number in range(41)]
    make_page(lesions, images, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "SECRET-" not in text
    assert str(images) not in text


def test_edited_names_are_shown_beside_the_proposal(images: Path, tmp_path: Path) -> None:
    lesions = [lesion(number) for number in range(41)]
    text = " ".join(make_page(lesions, images, tmp_path / "page.html", ("Rundherde", "liver")).text.split())
    assert "Proposed name: “lung” (lung: 5 of 6 lesions looked at)." in text
    assert "Proposed name: “liver” (why not)." in text
    assert "mm, or Rundherde" in text


@pytest.mark.parametrize(
    "values",
    [
        {"long_diameter_mm": None},
        {"long_diameter_mm": float("nan")},
        {"long_diameter_mm": 0.0},
        {"norm_x": None, "rows": None},
        {"norm_z": float("inf")},
        {"norm_x": -3.0, "norm_z": 7.0},
        {"image": "missing/001.png"},
        {"patient_id": None},
    ],
)
def test_what_is_not_known_is_not_shown(images: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    lesions = [lesion(number, **values) for number in range(10)]
    reader = make_page(lesions, images, tmp_path / "page.html")
    assert not re.search(r"\bnan\b|\binf\b|None", reader.text)
    draw_cards(cards_of(lesions), lesions, images, SETTINGS, tmp_path / "cards.png")
    assert ("no picture" in reader.text) == ("image" in values)


def test_many_categories_stay_below_five_megabytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesions = [lesion(number) for number in range(400)]
    # White noise of 45 HU in a window of 450: no crop of CT, once resampled, is harder to compress.
    noise = np.random.default_rng(0).normal(0.5, 0.1, (160, 160)).astype(np.float32)
    monkeypatch.setattr(page_module, "picture", lambda *_: (noise, (0.4, 0.4, 0.6, 0.6)))
    for count in (20, 60, 400):
        labels = (np.arange(400) % count).astype(np.int32)
        names = [f"category-{number}" for number in range(count)]
        points = np.random.default_rng(0).uniform(size=(400, 2))
        centroids = np.random.default_rng(1).uniform(size=(count, 2))
        cards = make_cards(lesions, labels, points, centroids, names, [Proposal(name, "why") for name in names])
        write_page(cards, lesions, images, SETTINGS, "", tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text().count("<img") <= page_module.MOST_PICTURES
        assert (tmp_path / "page.html").stat().st_size < 5_000_000


def test_the_picture_has_a_row_a_category(images: Path, tmp_path: Path) -> None:
    lesions = [lesion(number) for number in range(41)]
    draw_cards(cards_of(lesions), lesions, images, SETTINGS, tmp_path / "cards.png")
    drawn = cv2.imread(str(tmp_path / "cards.png"))
    assert drawn is not None
    assert drawn.shape[:2] == (410, 1750)
    assert drawn.std() > 10
