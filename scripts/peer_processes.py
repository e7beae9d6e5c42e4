"""The processes of peer_worker.py, seen from compare_peers.py: names, environments, requests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlip.errors import ConfigError

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "conf" / "model"
WORKER = Path(__file__).with_name("peer_worker.py")
PEERS = {  # model and the package that has it
    "mace-small": "mace",
    "mace-medium": "mace",
    "sevennet-0": "sevenn",
    "chgnet-0.3.0": "chgnet",
    "nequip-preset-S": "nequip",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Model:
    """What to ask a worker for.

    Attributes:
        name: on the command line and in results.
        package: that has it.
        options: of its class in peer_packages.py.
        kernels: of ours: the value of MLIP_KERNELS, or None for the default.
    """

    name: str
    package: str
    options: dict[str, Any] = field(default_factory=dict)
    kernels: str | None = None

    @classmethod
    def named(cls, name: str) -> Model:
        """Understand a name.

        Raises:
            ConfigError: nothing is called so.
        """
        plain = name.removesuffix(" (compiled)")
        if name in PEERS or PEERS.get(plain) == "nequip":
            compiled = {} if name == plain else {"compile": True}
            return cls(name, PEERS[plain], {"name": plain, **compiled})
        known = sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml"))
        match = re.fullmatch(r"([\w-]+)(?: \((?:(torch)|(compiled)|([\d.]+) Å)\))?", name)
        if match is None or match[1] not in known:
            raise ConfigError(
                f"there is no model {name!r}; there are {', '.join([*PEERS, *known])}, the latter "
                "also as 'NAME (torch)', 'NAME (compiled)' and 'NAME (6 Å)'"
            )
        options: dict[str, Any] = {"name": match[1]}
        if match[3]:
            options["compile"] = True
        if match[4]:
            options["cutoff"] = float(match[4])
        return cls(name, "mlip", options, match[2])


class WorkerError(Exception):
    """A package could not do what it was asked for; this is a result."""


class Worker:
    """A process of peer_worker.py."""

    def __init__(self, python: Path, model: Model) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            command(python, model), env=environment(model), text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def load(self, model: Model) -> dict[str, Any]:
        """Make a model and return what is known of it."""
        return self.ask("load", model, options=model.options)

    def ask(self, do: str, model: Model, **more: Any) -> dict[str, Any]:
        """Send a request and wait for the reply.

        Raises:
            WorkerError: the package raised an exception, or the process has ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, "model": model.name} | more) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"its process ended ({self._process.wait()}): {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # a request that it did not read
                if stream is not None:
                    stream.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def command(python: Path, model: Model) -> list[str]:
    """How a worker is started."""
    return [str(python), "-W", "ignore", str(WORKER), model.package]


def environment(model: Model) -> dict[str, str]:
    """The environment of a worker: one thread, and MLIP_KERNELS as the model says."""
    out = {name: value for name, value in os.environ.items() if name != "MLIP_KERNELS"}
    out |= dict.fromkeys(THREADS, "1")  # must be there when torch is imported
    return out | ({"MLIP_KERNELS": model.kernels} if model.kernels else {})


def environments(folder: Path, models: Sequence[Model]) -> tuple[dict[str, Path], list[str]]:
    """Return the Python of each package that the models need, and in words what is not there."""
    pythons, missing = {"mlip": Path(sys.executable)}, []
    for package in dict.fromkeys(m.package for m in models if m.package != "mlip"):
        python = folder / package / "bin" / "python"
        if python.exists():
            pythons[package] = python
        else:
            names = ", ".join(m.name for m in models if m.package == package)
            missing.append(
                f"{names}: {folder.name}/{package}/bin/python is not there; to install it, "
                f"`scripts/install_peers.sh FOLDER {package}` (in .peers: `make peers`)"
            )
    return pythons, missing
