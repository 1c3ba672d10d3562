"""The command line; each command imports what it needs, so that ``--help`` is there at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="lesion-bookmarks",
    help="Turn the marks radiologists left in an archive into lesion data sets, and findings back into reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", help="Where to write.", show_default=False)]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes to use.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
IndexFile = Annotated[
    Path | None,
    typer.Option(
        "--index",
        help="File to keep the index of the DICOM images in, so that later commands read only what changed. It holds "
        "patients' IDs and only you can read it.",
        show_default=False,
    ),
]
LesionsFile = Annotated[
    Path, typer.Argument(metavar="lesions.parquet", help="The lesions, as `harvest` wrote them.", show_default=False)
]
PngFolder = Annotated[
    Path,
    typer.Option("--images", help="Folder of slices: 16-bit PNG, SERIES/NNN.png, HU + 32768.", show_default=False),
]
CategoriesFile = Annotated[
    Path | None,
    typer.Option("--categories", help="categories.parquet from `categorize`. Without it there is one category."),
]

PRETRAIN_EPOCHS, ROUNDS = 3, 2
"""Of `categorize`: what does best on the choosing half of the judged lesions (docs/categories.md)."""


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.", show_default=False)],
    patients: Annotated[int, typer.Option("--patients", min=1, help="How many patients.")] = 52,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same hospital.")] = 0,
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            help="How marks are stored: sr, gsps, aim or seg. May be given several times. Default: sr.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Make a small synthetic hospital: CT series, the marks of its radiologists, and the full truth.

    Nothing in it comes from a person. Use it to try every other command.
    """
    from data_prep import phantom as package

    package.make(out, patients=patients, seed=seed, forms=forms or ["sr"], workers=workers, progress=not quiet)
    typer.echo(f"wrote a phantom hospital of {patients} patients to {out}")


@app.command()
def harvest(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Files and folders, of any kinds mixed.", show_default=False),
    ],
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder with the marked images: PNG slices (SERIES/NNN.png) or DICOM. DICOM images give their marks "
            "spacing, size and patient. Default: the DICOM images that lie among the sources.",
            show_default=False,
        ),
    ] = None,
    index: IndexFile = None,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Collect marks: DICOM SR, presentation states, AIM, SEG, RTSTRUCT, NIfTI masks, key-object notes,
    DeepLesion and plain CSVs, a detector's detections.json.

    What a file is, is judged by its content. Writes bookmarks.parquet (every mark), lesions.parquet (marks merged into
    lesions with boxes) and rejected.csv (what was not harvested, and why). If it is stopped, the same command goes on.
    """
    from data_prep.errors import DataPrepError
    from data_prep.harvest import harvest as run

    summary = run(sources, out, images=images, index=index, workers=workers, progress=not quiet)
    for line in summary.lines():
        typer.echo(line)
    if not summary.total_bookmarks:
        raise DataPrepError(f"no mark was harvested; {out / 'rejected.csv'} says why{first_reason(out)}")


def first_reason(out: Path) -> str:
    """The first reason in ``rejected.csv``, as the end of a sentence."""
    import csv

    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file), None)
    return "" if row is None else f" (first: {row['source_file']}: {row['reason']})"


@app.command()
def export(
    lesions: LesionsFile,
    dicom: Annotated[Path, typer.Option("--dicom", help="The archive: a folder of DICOM images.", show_default=False)],
    out: Out,
    margin_mm: Annotated[
        float, typer.Option("--margin-mm", min=0, help="How far above and below a key slice to export.")
    ] = 30.0,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="The file that leads back to the patients; it must not lie in OUT. Default: OUT_key.csv beside OUT.",
            show_default=False,
        ),
    ] = None,
    index: IndexFile = None,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Write an archive as a DeepLesion-format release: DL_info.csv and Images_png, de-identified."""
    from data_prep.archive.export import export as run

    summary = run(lesions, dicom, out, margin_mm=margin_mm, workers=workers, progress=not quiet, key=key, cache=index)
    typer.echo(str(summary))


@app.command()
def categorize(
    lesions: LesionsFile,
    images: PngFolder,
    out: Out,
    categories: Annotated[
        str, typer.Option("--categories", help="How many categories to find, or `auto` to let the data decide.")
    ] = "5",
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="Sort into the categories of an earlier run instead of finding new ones.",
            show_default=False,
        ),
    ] = None,
    pretrain: Annotated[
        int | None,
        typer.Option(
            "--pretrain",
            metavar="EPOCHS",
            min=0,
            help="Before all else let the network look at the training patients' crops for so many epochs, without any "
            "label (self-supervised, SwAV; its last stages learn that two views of a lesion belong together). Takes "
            "minutes. 0: the network stays as ImageNet made it.",
            show_default=f"{PRETRAIN_EPOCHS}; 0 with --model",
        ),
    ] = None,
    clustering: Annotated[
        str, typer.Option("--clustering", help="spectral on a neighbour graph, or k-means (often less clean).")
    ] = "spectral",
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=1,
            help="At most so many rounds of clustering; before each but the first the network is fine-tuned on the "
            "categories of the one before, which takes minutes. 1: no fine-tuning.",
        ),
    ] = ROUNDS,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            help="MLflow store for the training's figures, e.g. sqlite:///mlruns.db. They are in OUT/rounds.json "
            "anyway.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda or cuda:N.", show_default="cuda where there is a GPU")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the clustering.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Find categories of lesions without labels, and show each on a card."""
    from data_prep.categorize import MiningSettings, PretrainSettings, run
    from data_prep.errors import DataPrepError

    if categories != "auto" and not (categories.isdecimal() and int(categories) > 0):
        raise DataPrepError(f"--categories must be a number from 1 up, or auto; got {categories!r}")
    count: int | Literal["auto"] = "auto" if categories == "auto" else int(categories)
    if pretrain is None:
        pretrain = PRETRAIN_EPOCHS if model is None else 0
    summary = run(
        lesions,
        images,
        out,
        categories=count,
        model=model,
        clustering=clustering,
        pretraining=PretrainSettings(epochs=pretrain) if pretrain else None,
        mining=MiningSettings(rounds=rounds),
        tracking_uri=tracking_uri,
        device=device,
        seed=seed,
        progress=not quiet,
    )
    for message in summary.messages:
        typer.echo(message, err=True)
    for name, size in summary.categories.items():
        typer.echo(f"{name:24} {size:>7,} lesions")
    for reason, size in sorted(summary.left_out.items()):
        typer.echo(f"left out: {size:,} ({reason})")
    typer.echo(
        f"wrote categories.parquet to {out}; look at {out / 'categories.html'}, edit names in categories.yaml beside"
    )


@app.command()
def search(
    lesions: LesionsFile,
    images: PngFolder,
    out: Out,
    categories: Annotated[
        Path | None,
        typer.Option(
            "--categories",
            help="Folder that `categorize` wrote, with categorizer.safetensors; --like needs it.",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="LESION_ID", help="Find lesions that look like this one.", show_default=False),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="WORDS", help="Find lesions whose bookmarks hold these words.", show_default=False
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many lesions to find.")] = 20,
    other_patients: Annotated[
        bool, typer.Option("--other-patients", help="With --like: leave out lesions of the same patient.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda or cuda:N.", show_default="cuda where there is a GPU")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Find lesions that look like a given one, or whose bookmarks say given words, and show them on a sheet.

    With both, lesions are ranked by the mean of the two similarities. Writes hits.csv and hits.png.
    """
    from data_prep.categorize.search import search as run

    summary = run(
        lesions,
        images,
        out,
        categories=categories,
        like=like,
        text=text,
        count=count,
        other_patients=other_patients,
        device=device,
        progress=not quiet,
    )
    for line in summary.lines():
        typer.echo(line)
    typer.echo(f"wrote hits.csv and hits.png to {out}")


@app.command()
def datalist(
    lesions: LesionsFile,
    images: PngFolder,
    out: Out,
    categories: CategoriesFile = None,
    slices: Annotated[
        int, typer.Option("--slices", help="Neighbouring slices an item lists, odd; the key slice is in the middle.")
    ] = 3,
    slice_distance_mm: Annotated[
        float | None,
        typer.Option(
            "--slice-distance-mm",
            help="How far apart the neighbours are to be at least. Default: the next stored slices.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the datalist.json that training and evaluation read: slices and boxes, by patient-safe split."""
    from data_prep.lesion import read_lesions
    from data_prep.writers.datalist import write_datalist
    from data_prep.writers.select import read_categories

    summary = write_datalist(
        read_lesions(lesions),
        images,
        out,
        categories=None if categories is None else read_categories(categories),
        slices=slices,
        slice_distance_mm=slice_distance_mm,
    )
    for line in summary.lines():
        typer.echo(line)


@app.command()
def coco(
    lesions: LesionsFile,
    images: PngFolder,
    out: Out,
    categories: CategoriesFile = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only train, validation or test.", show_default=False)
    ] = None,
) -> None:
    """Write the lesions as COCO annotations, for other people's detectors."""
    from data_prep.errors import DataPrepError
    from data_prep.lesion import read_lesions
    from data_prep.splits import SPLITS
    from data_prep.writers.coco import write_coco
    from data_prep.writers.select import read_categories

    if split is not None and split not in SPLITS:
        raise DataPrepError(f"--split must be one of {', '.join(SPLITS)}; got {split!r}")
    found = None if categories is None else read_categories(categories)
    summary = write_coco(read_lesions(lesions), images, out, categories=found, split=split)
    typer.echo(f"{summary.annotations:,} lesions on {summary.images:,} slices")
    for reason, count in sorted(summary.left_out.items()):
        typer.echo(f"left out: {count:,} ({reason})")


@app.command()
def review(
    lesions: LesionsFile,
    accept: Annotated[
        Path | None,
        typer.Option("--accept", help="Text file of lesion ids to accept, one a line.", show_default=False),
    ] = None,
    reject: Annotated[
        Path | None,
        typer.Option("--reject", help="Text file of lesion ids to reject, one a line.", show_default=False),
    ] = None,
) -> None:
    """Accept or reject lesions: rejected ones never train, accepted detections do."""
    from data_prep.errors import DataPrepError
    from data_prep.review import read_ids
    from data_prep.review import review as run

    if accept is None and reject is None:
        raise DataPrepError("give --accept FILE or --reject FILE, or both")
    accepted, rejected = run(
        lesions,
        accept=[] if accept is None else read_ids(accept),
        reject=[] if reject is None else read_ids(reject),
    )
    typer.echo(f"{accepted:,} lesions are accepted, {rejected:,} rejected")


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="detections.json of a detector, or lesions.parquet.", show_default=False),
    ],
    dicom: Annotated[
        Path, typer.Option("--dicom", help="Folder of the DICOM images that were marked.", show_default=False)
    ],
    out: Out,
    index: IndexFile = None,
    quiet: Quiet = False,
) -> None:
    """Write findings as DICOM structured reports (TID 1500) that an archive takes back."""
    from data_prep.writers.report import report as run

    count = run(source, dicom, out, cache=index, progress=not quiet)
    typer.echo(f"wrote {count:,} reports to {out}")
