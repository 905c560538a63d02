"""The command line as a user runs it: a process of its own, watched for what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from deploykit.compilation import compile

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


@dataclass
class CommandLine:
    """Runs `deploykit` in the folder `folder`, with a home and a temporary folder of its own."""

    folder: Path
    home: Path
    temporary: Path
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "DEPLOYKIT_HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            **self.variables,
        }

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deploykit", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> Done:
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=timeout)
        return Done(process.returncode, stdout, stderr)

    def left_behind(self) -> list[str]:
        """Return what must not be there after a failure: temporary files, processes.

        A killed process may take a moment to go.
        """
        until = time.monotonic() + 3
        while (left := self._processes()) and time.monotonic() < until:
            time.sleep(0.05)
        return [str(path) for path in self.temporary.rglob("*")] + left

    def _processes(self) -> list[str]:
        """Return every living process that was started with our home."""
        found = []
        own = str(self.home)
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("DEPLOYKIT_HOME") == own:
                    found.append(f"process {process.pid}: {process.cmdline()}")
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found


@pytest.fixture
def deploykit(tmp_path: Path) -> CommandLine:
    """The command line, in an empty folder."""
    work, home, temporary = (tmp_path / name for name in ("work", "home", "tmp"))
    for folder in (work, home, temporary):
        folder.mkdir()
    return CommandLine(work, home, temporary)


@pytest.fixture
def odd(deploykit: CommandLine) -> CommandLine:
    """The command line with the target and the converter of `fixtures/plugins`, and their log."""
    deploykit.variables.update(
        DEPLOYKIT_PLUGIN_PATH=str(ROOT / "tests" / "fixtures" / "plugins"),
        ODD_LOG=str(deploykit.folder.parent / "odd.log"),
    )
    return deploykit


@pytest.fixture(scope="session")
def small_bundle(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model for ONNX Runtime; copy it to change it."""
    folder = tmp_path_factory.mktemp("small-bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_HOME", str(folder / "home"))
        compile(small_onnx, ["onnxruntime"], folder)
    return folder / "onnxruntime-cpu-fp32"
