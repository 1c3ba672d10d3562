"""The command line: help, one line on bad input, and exit codes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep import __main__, cli
from data_prep.archive.png import write_hu

COMMANDS = ("phantom", "harvest", "export", "categorize", "search", "datalist", "coco", "review", "report")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command as a shell would run it, but in this process, which is faster."""

    def run_main(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["lesion-bookmarks", *map(str, arguments)])
        capsys.readouterr()
        try:
            __main__.main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    return run_main


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    path = tmp_path / "marks.csv"
    rows = [f"length,{10 + i} 20 {40 + i} 20,S{i}/001.png,P{i}" for i in range(10)]
    path.write_text("\n".join(["form,points_px,image,patient_id", *rows]))
    for i in range(10):
        write_hu(tmp_path / "images" / f"S{i}" / "001.png", np.zeros((64, 64)))
    return path


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert all(command in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_there_at_once() -> None:
    """Neither torch nor Arrow is loaded for it, nor torch for a harvest."""
    script = (
        "import sys; from data_prep import cli; assert not {'torch', 'pyarrow', 'cv2', 'pydicom'} & set(sys.modules);"
        "import data_prep.harvest; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_whole_way(run: Run, marks: Path, tmp_path: Path) -> None:
    harvested = run("harvest", marks, "--out", tmp_path / "out", "--images", tmp_path / "images", "--quiet")
    assert harvested.returncode == 0, harvested.stderr
    assert harvested.stderr == ""
    assert "10 bookmarks" in harvested.stdout
    lesions = tmp_path / "out" / "lesions.parquet"
    made = run("datalist", lesions, "--images", tmp_path / "images", "--out", tmp_path / "d.json", "--slices", 1)
    assert made.returncode == 0, made.stderr
    value = json.loads((tmp_path / "d.json").read_text())
    items = [item for section in ("training", "tuning", "validation", "test") for item in value[section]]
    assert len(items) == 10
    assert run("coco", lesions, "--images", tmp_path / "images", "--out", tmp_path / "c.json").returncode == 0
    (tmp_path / "ids").write_text(items[0]["lesion_id"][0])
    reviewed = run("review", lesions, "--reject", tmp_path / "ids")
    assert reviewed.returncode == 0
    assert "1 rejected" in reviewed.stdout
    again = run("datalist", lesions, "--images", tmp_path / "images", "--out", tmp_path / "d.json", "--slices", 1)
    assert "1 (rejected in review)" in again.stdout


def bad_csv(folder: Path) -> Path:
    with (folder / "DL_info.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["File_name", "Patient_index", "Study_index", "Series_ID"])
    return folder / "DL_info.csv"


def test_bad_input_is_one_line_and_exit_code_2(run: Run, marks: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("nobody")
    run("harvest", marks, "--out", tmp_path / "out", "--quiet")
    lesions = tmp_path / "out" / "lesions.parquet"
    (tmp_path / "none").mkdir()
    for message, arguments in [
        ("no such images folder", ("harvest", marks, "--out", tmp_path / "o", "--images", tmp_path / "nowhere")),
        ("no such file or folder", ("harvest", tmp_path / "nothing.csv", "--out", tmp_path / "o")),
        ("is missing", ("harvest", bad_csv(tmp_path), "--out", tmp_path / "o", "--quiet")),
        ("no lesion can be used", ("datalist", lesions, "--images", tmp_path / "none", "--out", tmp_path / "d")),
        ("no such file", ("datalist", tmp_path / "l", "--images", tmp_path / "none", "--out", tmp_path / "d")),
        ("not a readable Parquet", ("coco", marks, "--images", tmp_path / "none", "--out", tmp_path / "d")),
        ("holds no lesion nobody", ("review", lesions, "--accept", tmp_path / "ids")),
        ("--accept FILE or --reject FILE", ("review", lesions)),
        ("--split", ("coco", lesions, "--images", tmp_path, "--out", tmp_path / "d", "--split", "all")),
        ("cannot write into this folder", ("harvest", marks, "--out", marks)),
        ("cannot write into this folder", ("harvest", marks, "--out", "/proc/nobody/writes/here")),
    ]:
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stdout)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert message in lines[0]
    assert not (tmp_path / "d").exists()


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "harvest", str(tmp_path / "no\nfile"), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/no file: no such file or folder\n"


def test_wrong_arguments_are_told_by_typer(run: Run) -> None:
    assert run("harvest").returncode == 2
    assert run("nonsense").returncode == 2


def _obey_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_the_middle_of_work(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    rows = (f"length,{i % 400} 20 {i % 400 + 30} 20,S/{i % 90}.png" for i in range(200_000))
    path.write_text("\n".join(["form,points_px,image", *rows]))
    command = [sys.executable, "-m", "data_prep", "harvest", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    # A shell starts its background jobs with SIGINT ignored, and children inherit that: tests may run in such a job.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_obey_sigint,
    )
    while process.poll() is None and not (tmp_path / "out" / ".harvest-work").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(__main__, "app", broken)
    with pytest.raises(ZeroDivisionError):
        __main__.main()
