"""The file a trained potential travels in: safetensors plus one JSON document.

Nothing in it is code and nothing is unpickled: the architecture is a name in our table, its
hyper-parameters are numbers, and the tensors must match what they imply, be finite, and have the
recorded hash. See design: one self-describing file is the potential.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlip.atomic import atomic_write
from mlip.errors import ConfigError, PotentialFileError
from mlip.models.potential import Potential
from mlip.models.registry import (
    ARCHITECTURES,
    PotentialSpec,
    architecture_version,
    build_potential,
)

FORMAT, FORMAT_VERSION = "mlip-potential", 1
MAX_HEADER = 16 * 1024**2  # bytes of JSON
UNITS = {"energy": "eV", "length": "A", "forces": "eV/A", "stress": "eV/A^3 (ASE sign)"}


def save_potential(
    path: Path | str, potential: Potential, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights and description atomically.

    Args:
        path: usually `potential.safetensors`.
        potential: built by `build_potential`.
        metadata: what is known beside the recipe: `training`, `metrics`, `symmetry_errors`, ...

    Raises:
        PotentialFileError: the potential has no recipe, or weights that are not finite.
    """
    spec: PotentialSpec | None = potential.spec
    if spec is None:
        raise PotentialFileError(
            "this potential was not built by build_potential; it has no recipe"
        )
    tensors = _tensors(potential)
    if bad := [name for name, t in tensors.items() if not torch.isfinite(t).all()]:
        raise PotentialFileError(f"weights {bad[:3]} are not finite; nothing was written to {path}")
    symbols = [chemical_symbols[z] for z in spec.species]
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": {
            "name": spec.architecture,
            "version": architecture_version(spec.architecture),
            "hyperparameters": spec.hyperparameters,
            "avg_num_neighbors": spec.avg_num_neighbors,
            "force_scale": spec.force_scale,
            "charge_spin": spec.charge_spin,
        },
        "priors": list(spec.priors),
        "head_names": list(spec.head_names),
        "species": symbols,
        "cutoff": potential.cutoff,
        "e0": [
            {chemical_symbols[int(z)]: float(e) for z, e in table.items()}
            for table in spec.reference_energies
        ],
        "units": UNITS,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "conservative": potential.conservative,
        "extensive": potential.extensive,
        "symmetry": potential.symmetry,
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        **(metadata or {}),
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": _hash(tensors),
    }
    _write(path, tensors, document)


def add_metadata(path: Path | str, updates: Mapping[str, Any]) -> None:
    """Rewrite the file atomically with more description and the same tensors."""
    document = {**read_metadata(path), **updates}
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _write(path, tensors, document)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Return the description without touching the weights.

    Raises:
        PotentialFileError: not a potential file, or one from a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise PotentialFileError(f"{path}: there is no such file")
    if path.is_dir():
        raise PotentialFileError(f"{path} is a folder; give the potential.safetensors in it")
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise PotentialFileError(
            f"{path} is a torch pickle, which can run code when loaded; mlip reads only its own "
            "safetensors files"
        )
    if len(start) < 8 or int.from_bytes(start, "little") > MAX_HEADER:
        raise PotentialFileError(f"{path} is not a potential file (no safetensors header)")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("mlip")
    except (SafetensorError, OSError) as error:
        raise PotentialFileError(f"{path} is not a readable potential file: {error}") from error
    if text is None:
        raise PotentialFileError(f"{path} is a safetensors file, but not an mlip potential")
    try:
        document = json.loads(text, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise PotentialFileError(f"{path}: damaged description: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PotentialFileError(f"{path} is not an mlip potential")
    found = document.get("format_version")
    if not isinstance(found, int) or not 1 <= found <= FORMAT_VERSION:
        raise PotentialFileError(
            f"{path} has format version {found}, this mlip reads up to {FORMAT_VERSION}; "
            "update mlip-trainer"
        )
    return document


def load_potential(
    path: Path | str, device: str = "auto", dtype: str | torch.dtype | None = None
) -> Potential:
    """Load a potential, ready to predict.

    Args:
        path: a file written by `mlip train`.
        device: "auto" (CUDA if there is one, else CPU) or a torch device.
        dtype: "float32" or "float64"; None keeps the one it was trained in.

    Raises:
        PotentialFileError: the file is damaged, foreign, or inconsistent with itself.
    """
    document = read_metadata(path)
    spec = _spec(path, document)
    try:
        potential = build_potential(spec)
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise PotentialFileError(f"{path}: cannot rebuild the model: {error}") from error
    expected = _tensors(potential)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if names != set(expected):
            raise PotentialFileError(
                f"{path}: tensors do not match {spec.architecture}: missing "
                f"{sorted(set(expected) - names)[:3]}, unexpected "
                f"{sorted(names - set(expected))[:3]}"
            )
        tensors = {name: file.get_tensor(name) for name in sorted(names)}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise PotentialFileError(
                f"{path}: tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise PotentialFileError(f"{path}: tensor {name} holds values that are not finite")
    if _hash(tensors) != document.get("sha256"):
        raise PotentialFileError(
            f"{path}: the weights do not match their recorded hash: copy it again"
        )
    potential = potential.to(next(iter(tensors.values())).dtype if tensors else torch.float32)
    potential.load_state_dict(tensors, strict=False)
    potential.metadata = document
    target = resolve_device(device)
    potential = potential.to(device=target, dtype=resolve_dtype(dtype) or potential.dtype)
    return potential.freeze()


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device that "auto", "cpu", "cuda", ... stands for.

    Raises:
        ConfigError: there is no such device here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used ({str(error).splitlines()[0]}); use auto, cpu, "
            "or cuda where torch finds a GPU"
        ) from error
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the torch dtype that "float32" or "float64" stands for.

    Raises:
        ConfigError: another word.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype={dtype!r} must be 'float32' or 'float64'")
    return getattr(torch, dtype)


def _spec(path: Path | str, document: Mapping[str, Any]) -> PotentialSpec:
    try:
        architecture = document["architecture"]
        tables = tuple(
            {atomic_numbers[symbol]: float(e) for symbol, e in table.items()}
            for table in document["e0"]
        )
        written, known = architecture["version"], architecture_version(architecture["name"])
        if written != known and architecture["name"] in ARCHITECTURES:
            advice = (
                "is newer than this mlip; update mlip-trainer"
                if written > known
                else f"is older than the version {known} that this mlip reads; train it again"
            )
            raise PotentialFileError(f"{path}: {architecture['name']} version {written} {advice}")
        return PotentialSpec(
            architecture=str(architecture["name"]),
            hyperparameters=dict(architecture["hyperparameters"]),
            species=tuple(atomic_numbers[s] for s in document["species"]),
            reference_energies=tables,
            avg_num_neighbors=float(architecture["avg_num_neighbors"]),
            force_scale=float(architecture["force_scale"]),
            charge_spin=bool(architecture["charge_spin"]),
            priors=tuple(document["priors"]),
            head_names=tuple(document["head_names"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PotentialFileError(f"{path}: the description lacks or garbles {error}") from error


def _tensors(potential: Potential) -> dict[str, Tensor]:
    """Trained tensors only: reference energies are in the description, to the last digit."""
    state = potential.state_dict()
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if k != "e0"}


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _write(path: Path | str, tensors: dict[str, Tensor], document: Mapping[str, Any]) -> None:
    text = json.dumps(_plain(document), sort_keys=True, allow_nan=False)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"mlip": text})


def _plain(value: Any) -> Any:
    """Return what JSON can hold: an error that is not finite is null, not the end of the run."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float | str | bool) else str(value)


def package_versions() -> dict[str, str]:
    """Return the versions that matter for reproducing a prediction."""
    out = {"python": platform.python_version()}
    for name in ("mlip-trainer", "torch", "lightning", "torch-geometric", "numpy", "ase", "vesin"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
