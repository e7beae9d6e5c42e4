"""Whether this machine and this environment can do the work: what is there, and what is broken."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from mlip.atomic import free_bytes
from mlip.cache_folder import cache_folder
from mlip.errors import ConfigError

DISTRIBUTION: Final = "mlip-trainer"
LITTLE_SPACE: Final = 2 * 1024**3  # bytes; less is worth a word
# What a version does that its number does not say; the ranges themselves are in our metadata.
KNOWN_BAD: Final = {
    ("lightning", "2.6.2"): "a malicious upload: it reads credentials; remove it and change them",
    ("lightning", "2.6.3"): "a malicious upload: it reads credentials; remove it and change them",
    ("pytorch-lightning", "2.6.2"): "a malicious upload; remove it and change your credentials",
    ("pytorch-lightning", "2.6.3"): "a malicious upload; remove it and change your credentials",
}
WHY: Final = {
    "lmdb": "lmdb 2 breaks workers that were forked",
    "torch": "older ones have holes in the loading of checkpoints",
    "lightning": "older ones run code that a checkpoint names",
}


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the examination.

    Attributes:
        name: of what was looked at.
        value: what was found.
        broken: whether something will not work.
        advice: what to do; empty if nothing.
    """

    name: str
    value: str
    broken: bool = False
    advice: str = ""


def examine_environment() -> list[Note]:
    """Look at Python, packages, accelerators, threads, folders and variables."""
    return [
        *_python(),
        *_packages(),
        *_namesakes(),
        *_accelerators(),
        *_threads(),
        *_kernels(),
        *_cache(),
        *_variables(),
    ]


def _python() -> Iterator[Note]:
    found = f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    right = Version(platform.python_version()) in Requirement(f"python{wanted}").specifier
    advice = "" if right else f"mlip needs Python {wanted}"
    yield Note("python", found, broken=not right, advice=advice)


def _packages() -> Iterator[Note]:
    """Compare what is installed with what our own metadata require."""
    yield Note(DISTRIBUTION, metadata.version(DISTRIBUTION))
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield _package(requirement)
    for (name, version), why in KNOWN_BAD.items():
        if name not in WHY and _version(name) == version:
            yield Note(name, version, broken=True, advice=why)


def _package(requirement: Requirement) -> Note:
    name, found = requirement.name, _version(requirement.name)
    install = f"pip install '{requirement}'"
    if found is None:
        return Note(name, "not installed", broken=True, advice=install)
    if why := KNOWN_BAD.get((name, found)):
        return Note(name, found, broken=True, advice=why)
    if not requirement.specifier.contains(found, prereleases=True):
        reason = f" ({WHY[name]})" if name in WHY else ""
        advice = f"mlip needs {requirement.specifier}{reason}: {install}"
        return Note(name, found, broken=True, advice=advice)
    return Note(name, found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _namesakes() -> Iterator[Note]:
    """Find another distribution that is imported by our name."""
    owners = sorted(set(metadata.packages_distributions().get("mlip", [])) - {DISTRIBUTION})
    if owners:
        yield Note(
            "import mlip",
            f"also belongs to {', '.join(owners)}",
            broken=True,
            advice=f"the two cannot share an environment: pip uninstall {owners[0]}, then install "
            f"{DISTRIBUTION} again",
        )


def _accelerators() -> Iterator[Note]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Note("torch", f"cannot be imported: {error}", broken=True, advice="install it again")
        return
    build = torch.version.cuda or torch.version.hip
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 1024**3:.0f} GiB"
            yield Note(f"cuda:{index}", f"{properties.name}, {memory}")
    elif build and shutil.which("nvidia-smi"):
        yield Note(
            "accelerator",
            f"none that torch (built for CUDA {build}) can use, though a driver is installed",
            advice="nvidia-smi says which CUDA the driver supports; install a torch built for it",
        )
    else:
        yield Note("accelerator", "none: training and use are on the CPU")


def _threads() -> Iterator[Note]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None and not given.isdigit():
        yield Note(
            "threads", f"OMP_NUM_THREADS={given!r}", advice="set it to a number, or unset it"
        )
    elif given is not None and cores and int(given) > cores:
        advice = f"more threads than cores slow everything down: OMP_NUM_THREADS={cores}"
        yield Note("threads", f"OMP_NUM_THREADS={given}, {cores} cores", advice=advice)
    else:
        yield Note("threads", f"{cores} cores, OMP_NUM_THREADS={given or 'not set'}")


def _kernels() -> Iterator[Note]:
    """Say whether convolutions run as compiled loops."""
    from mlip.models.kernels import compiler, fused_sum

    try:
        wanted = compiler.mode()
    except ConfigError as error:
        yield Note("kernels", str(error), broken=True, advice="set or unset MLIP_KERNELS")
        return
    if wanted == "torch":
        yield Note("kernels", "in PyTorch (MLIP_KERNELS=torch)")
        return
    if wanted == "triton":
        try:
            fused_sum.require()
            yield Note("kernels on a GPU", "in Triton, not yet timed (MLIP_KERNELS=triton)")
        except ConfigError as error:
            yield Note("kernels on a GPU", str(error), broken=True, advice="unset MLIP_KERNELS")
    reason = compiler.obstacle()
    if reason is None:
        yield Note("kernels", f"compiled by {shlex.join(compiler.compiler() or ())}")
    elif wanted == "compiled":
        advice = "repair that, or unset MLIP_KERNELS to run without"
        yield Note("kernels", f"MLIP_KERNELS=compiled, but {reason}", broken=True, advice=advice)
    else:
        advice = f"Facet and NequIP are slower without compiled kernels: {reason}"
        yield Note("kernels", "in PyTorch", advice=advice)


def _cache() -> Iterator[Note]:
    """Try the folder of the stores, and the one for temporary files."""
    try:
        cache = cache_folder()
    except ConfigError as error:
        yield Note("cache", str(error), broken=True, advice="set MLIP_CACHE to a folder")
        return
    for name, folder, variable in (
        ("cache", cache, "MLIP_CACHE"),
        ("temporary", Path(tempfile.gettempdir()), "TMPDIR"),
    ):
        yield _folder(name, folder, variable)


def _folder(name: str, folder: Path, variable: str) -> Note:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = free_bytes(folder)
    except OSError as error:
        advice = f"set {variable} to a folder that can be written"
        return Note(name, f"{folder}: {error.strerror}", broken=True, advice=advice)
    value = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free < LITTLE_SPACE:
        return Note(name, value, advice=f"make room, or set {variable} to another folder")
    return Note(name, value)


def _variables() -> Iterator[Note]:
    for name in sorted(os.environ):
        if name.startswith("MLIP_"):
            yield Note(name, os.environ[name])
