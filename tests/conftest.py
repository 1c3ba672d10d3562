"""Fixtures for all tests, and the one home of the judges: programs nobody here wrote, asked about our DICOM.

A judge that is not installed skips the test that asks it; the summary says which judges ran.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

JUDGES = {"dciodvfy": "dicom3tools", "dsrdump": "dcmtk", "dcmpschk": "dcmtk", "Orthanc": "orthanc-dicomweb"}
"""Judge -> the Debian package it comes with."""

HOW_TO_INSTALL = "bash scripts/test.sh --judges"
ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")

_ASKED = "DICOM judge"  # a property of the reports, which reach the summary from other processes too


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data (see docs/testing.md); tests that need it are skipped where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LESION_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"the real sample data is not at {folder}; set LESION_SHARED_DATA")
    return folder


# --- judges that are asked about one file --------------------------------------------------------------------------


def installed(judge: str) -> str | None:
    """The path of a judge's program, None where it (or, for Orthanc, its DICOMweb plugin) is not installed."""
    if judge == "Orthanc" and not any(ORTHANC_PLUGINS.glob("*DicomWeb*")):
        return None
    # Debian keeps servers where only the superuser looks.
    return shutil.which(judge, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))


class Judges:
    """The judges, for one test; asking one that is not installed skips the test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def program(self, judge: str) -> str:
        """The path of a judge's program; skips the test where there is none."""
        found = installed(judge)
        self._item.user_properties.append((_ASKED, f"{judge} {'ran' if found else 'is missing'}"))
        if found is None:
            pytest.skip(f"{judge} (Debian package {JUDGES[judge]}) is not installed: {HOW_TO_INSTALL}")
        return found

    def dciodvfy(self, path: Path, iod: str) -> list[str]:
        """Its errors about an object, which it must have recognised as ``iod``, e.g. ``ComprehensiveSR``."""
        said = self._ask("dciodvfy", str(path))
        lines = (said.stdout + said.stderr).splitlines()
        assert any(iod in line for line in lines), lines  # of what it does not know it finds no error
        return [line for line in lines if line.startswith("Error")]

    def dsrdump(self, path: Path) -> str:
        """A report as it prints it, long values in full."""
        said = self._ask("dsrdump", "+Pl", str(path))
        assert said.returncode == 0, said.stderr
        assert "E: " not in said.stderr, said.stderr
        return said.stdout

    def dcmpschk(self, path: Path) -> list[str]:
        """Its complaints about a presentation state."""
        said = self._ask("dcmpschk", str(path))
        lines = (said.stdout + said.stderr).splitlines()
        return [] if said.returncode == 0 and any("Test passed" in line for line in lines) else lines or ["it failed"]

    def _ask(self, judge: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.program(judge), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False)


@pytest.fixture
def judges(request: pytest.FixtureRequest) -> Judges:
    """The independent judges of what we write."""
    return Judges(request.node)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which judges ran, where any was asked."""
    said = {
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _ASKED
    }
    if not said:
        return
    words = {
        judge: "ran" if f"{judge} ran" in said else "not asked" if installed(judge) else "not installed"
        for judge in JUDGES
    }
    line = ", ".join(f"{judge} {state}" for judge, state in words.items())
    hint = f" ({HOW_TO_INSTALL})" if "not installed" in words.values() else ""
    terminalreporter.write_line(f"DICOM judges: {line}{hint}")


# --- Orthanc -------------------------------------------------------------------------------------------------------


class Orthanc:
    """A running Orthanc, a PACS, on loopback."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy

    def get(self, path: str) -> bytes:
        """The answer to a GET of ``path``."""
        with self._opener.open(self._root + path, timeout=60) as answer:
            return bytes(answer.read())

    def store(self, files: Sequence[Path]) -> tuple[list[str], list[str]]:
        """Send objects by STOW-RS (PS3.18 10.5): SOP instance UIDs that were taken, and those that were refused."""
        boundary = "part-of-a-store-request"
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        request = urllib.request.Request(f"{self._root}/dicom-web/studies", body, headers)
        try:
            with self._opener.open(request, timeout=120) as answer:
                stated = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"the store request was refused: {error.code} {error.read()!r}") from error
        taken, refused = (
            [item["00081155"]["Value"][0] for item in stated.get(sequence, {}).get("Value", [])]
            for sequence in ("00081199", "00081198")  # Referenced SOP Sequence, Failed SOP Sequence
        )
        return taken, refused

    def download(self, folder: Path) -> list[Path]:
        """Every stored object, as a file of ``folder``."""
        folder.mkdir()
        files = []
        for number, instance in enumerate(json.loads(self.get("/instances"))):
            files.append(folder / f"{number:05d}")
            files[-1].write_bytes(self.get(f"/instances/{instance}/file"))
        return files


@pytest.fixture
def orthanc(judges: Judges, tmp_path: Path) -> Iterator[Orthanc]:
    """An empty Orthanc with DICOMweb, started for one test."""
    program = judges.program("Orthanc")
    log = tmp_path / "orthanc.log"
    for _ in range(3):  # somebody else may take the port before Orthanc does
        port = _free_port()
        process = _start(program, port, tmp_path, log)
        try:
            server = Orthanc(port)
            if _answers(server, process):
                yield server
                return
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail(f"Orthanc does not start:\n{log.read_text(errors='replace')[-3000:]}")


def _start(program: str, port: int, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    configuration = {
        "Name": "judge",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(ORTHANC_PLUGINS)],
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with log.open("ab") as output:
        return subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder
        )


def _answers(server: Orthanc, process: subprocess.Popen[bytes], within_s: float = 60.0) -> bool:
    """Wait until Orthanc answers; False where it ends or says nothing in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until and process.poll() is None:
        try:
            server.get("/system")
            return True
        except OSError:  # refused as long as it starts
            time.sleep(0.2)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
