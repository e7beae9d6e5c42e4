"""Training from configuration to potential file, in the order things happen."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger

from mlip.data.check import require_labels
from mlip.data.prepare import PreparedData, prepare_data
from mlip.data.sources import head_names, parse_sources
from mlip.errors import ConfigError, TrainingError
from mlip.graph import AtomGraph
from mlip.models.compiled import compile_potential
from mlip.models.potential import Potential
from mlip.models.registry import PotentialSpec, build_potential, resolve_options
from mlip.potential_file import add_metadata, save_potential
from mlip.report.run_report import write_report
from mlip.symmetry import symmetry_errors
from mlip.training.callbacks import EpochLog, Interrupted, RunLimits, WarmEMA
from mlip.training.card import training_card, training_cost
from mlip.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mlip.training.config import Config, load_config, validate_config
from mlip.training.held_out import evaluate_held_out, source_columns
from mlip.training.loss import HuberLoss
from mlip.training.module import SYMMETRY_COLUMNS, Limits, PotentialModule
from mlip.training.objectives import make_objective
from mlip.training.processes import (
    AveragedGradients,
    check_started,
    number_of,
    one_ends_all,
    processes,
    rank_of,
    tell_folder,
)
from mlip.training.products import float32_products
from mlip.training.run_folder import (
    choose_folder,
    claim_folder,
    log_to,
    record_start,
    require_same_run,
    require_space,
)

log = logging.getLogger("mlip")
LABELS = ("energy", "forces", "stress")
ENOUGH_STRUCTURES, ENOUGH_ATOMS = 64, 10_000  # to know errors of symmetry by


@dataclass
class RunResult:
    """What a training run leaves behind."""

    out_dir: Path
    potential: Path
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    overrides: Sequence[str] | Mapping[str, Any] = (), file: Path | str | None = None
) -> RunResult:
    """Train what the configuration describes.

    Args:
        overrides: `["model=facet", "data.train=my.extxyz"]`, or a complete configuration.
        file: a YAML file of settings that the overrides come after.

    Raises:
        ConfigError: an option is misspelt or out of range; nothing has been written.
        DataError: the data cannot be used; nothing has been written.
    """
    if isinstance(overrides, Mapping):
        config = validate_config(dict(overrides))
    else:
        config = load_config(overrides, file)
    if threads := config["trainer"]["num_threads"]:
        torch.set_num_threads(int(threads))
    weights = {label: config["loss"][f"{label}_weight"] for label in LABELS}
    check_started(config["trainer"])
    rank = rank_of(config["trainer"])
    if rank > 0:
        log.setLevel(logging.WARNING)  # the first process says it
    out_dir, checkpoint = choose_folder(config, rank)
    _accelerator(config["trainer"]["accelerator"])
    if config["logger"]["name"] == "tensorboard" and find_spec("tensorboard") is None:
        raise ConfigError("logger=tensorboard needs: pip install 'mlip-trainer[tensorboard]'")
    require_space(out_dir, _try_building(config))
    data = _prepare(config, weights)
    _drop_absent_stress(config, data, weights)
    _resolve_model(config, data)

    if checkpoint is not None:
        require_same_run(config, data, checkpoint)

    if rank > 0:
        with processes(config["trainer"]):
            _train(config, data, out_dir, checkpoint)
        raise SystemExit(0)  # what follows is for the first process
    out_dir = claim_folder(config, out_dir, checkpoint)
    handler = log_to(out_dir / "train.log")
    try:
        with processes(config["trainer"]):
            trained = _train(config, data, out_dir, checkpoint)
        return _finish(config, data, out_dir, *trained)
    finally:
        log.removeHandler(handler)
        handler.close()


def _train(
    config: Config, data: PreparedData, out_dir: Path, checkpoint: Path | None
) -> tuple[Potential, HuberLoss, dict[str, float], float]:
    """Return the trained potential, the loss, the last training errors and the seconds it took."""
    began = time.monotonic()
    torch.manual_seed(config["seed"])
    potential = build_potential(_spec(config, data))
    if not potential.conservative and config["loss"]["stress_weight"] > 0:
        config["loss"]["stress_weight"] = 0.0
        data.notes.append("direct forces have no stress: it is not trained on (stress_weight=0)")
    size = sum(p.numel() for p in potential.parameters())
    for line in data.summary():
        log.info(line)
    log.info(
        f"Model    {config['model']['name']}  {size:,} parameters, "
        f"{config['trainer']['precision']}, {torch.get_num_threads()} threads; "
        f"objective {config['objective']['name']}"
    )
    log.info(f"Run      {out_dir}")
    options = config["trainer"]
    rank, number = rank_of(options), number_of(options)
    if rank == 0:
        record_start(config, data, out_dir)
    if rank == 0 and number > 1:
        tell_folder(out_dir)

    share = {"rank": rank, "world_size": number, "beside": options["devices"]}
    loader = data.loader("train", seed=config["seed"], **share)
    if loader is None:
        raise TrainingError("there is nothing to train on")
    val = data.loader("val", **share)
    steps_per_epoch = len(loader)
    limits = Limits(options["max_epochs"], options["max_steps"], options["max_time"])
    loss = _loss(config, data.stats.force_scale)
    objective = make_objective(config["objective"], potential, loss)
    if options["precision"] == "64-true":
        potential, objective = potential.double(), objective.double()
    if options["compile"]:
        compile_potential(potential)
    module = PotentialModule(
        potential,
        loss,
        objective,
        optimizer=config["optimizer"],
        scheduler=config["scheduler"],
        limits=limits,
        steps_per_epoch=steps_per_epoch,
        seed=config["seed"],
        sources=data.source_names,
        rotations=options["val_rotations"],
    )
    folder = out_dir / "checkpoints"
    guard = RunLimits(limits, loader, folder / "last.ckpt", steps_per_epoch)
    columns = [f"train/{name}" for name in objective.monitors]
    if potential.symmetry == "none":
        columns += [f"val/{name}" for name in SYMMETRY_COLUMNS]
    columns += source_columns(data.source_names)
    callbacks: list[Callback] = [
        EpochLog(out_dir / "metrics.csv", limits, steps_per_epoch, columns, data.source_names)
    ]
    if config["ema"]["decay"] > 0:
        callbacks.append(WarmEMA(config["ema"]["decay"]))
    callbacks.append(guard)
    callbacks += _checkpoints(folder, has_val=val is not None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice on workers and logging steps
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = _trainer(config, out_dir, callbacks)
        if checkpoint is None or not guard.used_up(read_checkpoint(checkpoint)):
            if (trainer.world_size, trainer.global_rank) != (number, rank):
                raise ConfigError(
                    f"this is process {rank} of {number}, but Lightning takes it for "
                    f"{trainer.global_rank} of {trainer.world_size}; start them by torchrun or srun"
                )
            try:
                with one_ends_all(trainer), float32_products(options["matmul_precision"]):
                    trainer.fit(module, loader, val, ckpt_path=checkpoint)  # type: ignore[arg-type]
            except Interrupted:
                if rank == 0:
                    raise
    potential.compiled = None  # what follows is short, and not worth compiling for use
    seen = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
    return potential, loss, seen, time.monotonic() - began


def _trainer(config: Config, out_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    options = config["trainer"]
    show_bar = sys.stderr.isatty()
    return L.Trainer(
        max_epochs=options["max_epochs"] or -1,
        accelerator=_accelerator(options["accelerator"]),
        devices=options["devices"],
        num_nodes=options["num_nodes"],
        strategy=AveragedGradients() if number_of(options) > 1 else "auto",
        precision=options["precision"],
        gradient_clip_val=options["gradient_clip"] or None,
        callbacks=[*callbacks, *([RichProgressBar(leave=False)] if show_bar else [])],
        plugins=[AtomicCheckpointIO()],
        logger=_logger(config, out_dir),
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        inference_mode=False,  # forces need autograd in validation
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=out_dir,
    )


def _finish(
    config: Config,
    data: PreparedData,
    out_dir: Path,
    potential: Potential,
    loss: HuberLoss,
    metrics: dict[str, float],
    seconds: float,
) -> RunResult:
    """Write the potential, then evaluate it, then write what was found."""
    best = out_dir / "checkpoints" / "best.ckpt"
    last = out_dir / "checkpoints" / "last.ckpt"
    state = read_checkpoint(best if best.exists() else last)["state_dict"]
    prefix = "potential."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    potential.load_state_dict(own)
    potential = potential.cpu()
    path = out_dir / "potential.safetensors"
    cost = training_cost(out_dir / "metrics.csv", seconds)
    cost["processes"] = number_of(config["trainer"])
    card = {"training": training_card(config, data), "training_cost": cost}
    save_potential(path, potential, card)
    log.info(f"Saved    {path}")
    device = "cuda" if _accelerator(config["trainer"]["accelerator"]) == "cuda" else "cpu"
    potential = potential.to(device).freeze()
    rotations = config["trainer"]["val_rotations"]
    evaluations, errors = evaluate_held_out(data, potential, loss, rotations)
    metrics = metrics | errors
    counts = {part: e.counts for part, e in evaluations.items()}
    add_metadata(path, {"metrics": metrics, "metric_counts": counts})
    symmetry = _measure_symmetry(data, potential)
    add_metadata(path, {"symmetry_errors": symmetry})
    turned = symmetry["rotation"]
    report = write_report(
        out_dir,
        title=f"{config['name'] or config['model']['name']}: training report",
        summary=data.summary(),
        facts={
            "potential": path,
            "wall time": f"{seconds:.0f} s",
            "parameters": f"{sum(p.numel() for p in potential.parameters()):,}",
            f"change of {turned['structures']} structures under {turned['operations']} rotations": (
                f"{1e3 * turned['forces_rmse']:.2g} meV/Å of forces, "
                f"{1e3 * turned['energy_per_atom_rmse']:.2g} meV/atom"
            ),
            "again": f"`mlip train {out_dir / 'config.yaml'} out_dir=NEW`",
        },
        evaluations=evaluations,
    )
    log.info(f"Report   {report}")
    return RunResult(out_dir, path, metrics)


def _measure_symmetry(data: PreparedData, potential: Potential) -> dict[str, dict[str, float]]:
    loader = data.loader("val") or data.loader("train")
    if loader is None:
        raise TrainingError("there is no structure to measure symmetry on")
    return symmetry_errors(potential, _some(loader, potential.device))


def _some(loader: Iterable[AtomGraph], device: torch.device) -> Iterator[AtomGraph]:
    """Yield whole batches until there are enough structures to know an error by."""
    structures = atoms = 0
    for graph in loader:
        yield graph.to(device)
        structures, atoms = structures + graph.num_graphs, atoms + len(graph.atomic_numbers)
        if structures >= ENOUGH_STRUCTURES or atoms >= ENOUGH_ATOMS:
            break


def _prepare(config: Config, weights: Mapping[str, float]) -> PreparedData:
    # Stress belongs to crystals and is asked for when it is known whether there are any.
    required = [label for label in ("energy", "forces") if weights[label] > 0]
    prior = config["model"].get("prior") or "none"
    return prepare_data(
        config["data"],
        cutoff=float(config["model"]["cutoff"]),
        seed=config["seed"],
        required_labels=required,
        baseline=None if prior == "none" else lambda species: _prior_energies(config, species),
    )


def _loss(config: Config, force_scale: float) -> HuberLoss:
    weights = {f"{label}_weight": float(config["loss"][f"{label}_weight"]) for label in LABELS}
    return HuberLoss(**weights, delta=float(config["loss"]["delta"]), force_scale=force_scale)


def _try_building(config: Config) -> int:
    """Return the number of parameters, having seen that the options of the model are right."""
    model = dict(config["model"])
    prior, name = model.pop("prior", None) or "none", model.pop("name")
    priors = () if prior == "none" else (str(prior),)
    heads = head_names(parse_sources(config["data"]))
    tables = ({1: 0.0},) * len(heads)
    spec = PotentialSpec(name, model, (1,), tables, 1.0, priors=priors, head_names=heads)
    try:
        potential = build_potential(spec)
        make_objective(config["objective"], potential, _loss(config, force_scale=1.0))
        if config["trainer"]["compile"]:
            compile_potential(potential.to(_accelerator(config["trainer"]["accelerator"])))
        return sum(p.numel() for p in potential.parameters())
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, ConfigError):
            raise
        options = ", ".join(f"model.{key}={value}" for key, value in model.items())
        raise ConfigError(f"{name} cannot be built with {options}: {error}") from error


def _drop_absent_stress(config: Config, data: PreparedData, weights: Mapping[str, float]) -> None:
    if weights["stress"] > 0 and data.coverage.counts["train"]["stress"] == 0:
        store, train = data.parts["train"]
        if store.column("pbc")[train].all(axis=-1).any():  # crystals have stress: where is it?
            require_labels(data.coverage, ["stress"], data.parts, config["data"]["format"])
        config["loss"]["stress_weight"] = 0.0
        data.notes.append("no stress labels: trained on energies and forces (stress_weight=0)")


def _resolve_model(config: Config, data: PreparedData) -> None:
    """Settle what the options of the model leave to the data, so that the file holds values."""
    parts = data.parts.values()
    periodic = any(bool(store.column("pbc")[rows].any()) for store, rows in parts)
    model = config["model"]
    for key, value in resolve_options(model["name"], model, periodic=periodic).items():
        if value != model[key]:
            found = "periodic structures" if periodic else "no periodic structure"
            data.notes.append(f"model.{key}={value}: the data have {found}")
            model[key] = value


def _prior_energies(config: Config, species: tuple[int, ...]) -> Callable[[AtomGraph], np.ndarray]:
    spec = PotentialSpec(
        architecture="lennard_jones",
        hyperparameters={"cutoff": float(config["model"]["cutoff"]), "epsilon": 0.0},
        species=species,
        reference_energies=(dict.fromkeys(species, 0.0),),
        avg_num_neighbors=1.0,
        priors=(config["model"]["prior"],),
    )
    prior = build_potential(spec).double().freeze()

    def energies(graph: AtomGraph) -> np.ndarray:
        with torch.no_grad():
            return prior(graph.with_head(0), derivatives=False).energy.numpy()

    return energies


def _spec(config: Config, data: PreparedData) -> PotentialSpec:
    model = dict(config["model"])
    prior = model.pop("prior", None) or "none"
    return PotentialSpec(
        architecture=model.pop("name"),
        hyperparameters=model,
        species=data.stats.species,
        reference_energies=tuple(e0.table for e0 in data.stats.references.values()),
        head_names=tuple(data.stats.references),
        avg_num_neighbors=data.stats.avg_num_neighbors,
        force_scale=data.stats.force_scale,
        charge_spin=data.stats.charge_spin,
        priors=() if prior == "none" else (str(prior),),
    )


def _checkpoints(folder: Path, *, has_val: bool) -> list[Callback]:
    last = ModelCheckpoint(
        dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="val/score",
        mode="min",
        save_on_train_epoch_end=False,  # but after validation: a signal may end the run in between
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [best, last] if has_val else [last]


def _logger(config: Config, out_dir: Path) -> Logger | bool:
    name = config["logger"]["name"]
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        offline = not os.environ.get("WANDB_API_KEY")
        if offline:
            log.warning("logger=wandb: no WANDB_API_KEY, logging offline into %s", out_dir)
        return WandbLogger(name=config["name"], save_dir=out_dir, offline=offline, save_code=False)
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(save_dir=out_dir, name="tensorboard")
    return False  # metrics.csv is always written


def _accelerator(setting: str) -> str:
    available = torch.cuda.is_available()
    if setting == "auto":
        return "cuda" if available else "cpu"
    if setting in ("gpu", "cuda") and not available:
        raise ConfigError(
            f"trainer.accelerator={setting}: torch finds no GPU here; use auto or cpu, or install "
            "a torch built for your GPU"
        )
    return "cuda" if setting == "gpu" else setting


__all__ = ["Interrupted", "RunResult", "train"]
