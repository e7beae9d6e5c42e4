"""How fast data are read, converted and served, against the targets we set ourselves.

Run: OMP_NUM_THREADS=1 MLIP_REAL_DATA=DATA pytest -m benchmark tests/benchmarks

It needs 8 GB of disk for a few minutes and writes data/results/data-path.json, whose every entry
has its target and whether it was met on the machine that it names. Rates are given per second of
CPU, for which other processes on the machine count little, and per second of the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
import torch

from mlip.data.batching import Budget, GraphLoader
from mlip.data.readers import Block, Frame, Piece, read_structures
from mlip.data.store import Store, build
from mlip.data.store.layout import MANIFEST, SHARDS, make_manifest
from mlip.data.store.writer import ShardWriter
from mlip.models.registry import PotentialSpec, build_potential
from mlip.training.config import load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from machine import processor

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(3000)]
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data" / "results" / "data-path.json"
JSON_BYTES = int(2e9)
ROWS = 20_000
STRUCTURES = 20_000_000


def record(name: str, **values: Any) -> None:
    """Put one entry into the results, leaving the others as they are."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["about"] = {
        "command": "OMP_NUM_THREADS=1 MLIP_REAL_DATA=DATA pytest -m benchmark tests/benchmarks",
        "machine": f"{processor()}, {os.cpu_count()} cores shared with other processes",
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }
    results[name] = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in values.items()
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def in_a_process(code: str, *arguments: object) -> dict[str, Any]:
    """Run code in a fresh process, which prints one JSON object."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURING + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


MEASURING = """
import json, resource, sys, time
from pathlib import Path
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
"""
CONVERTING = """
from mlip.data.store import Store, build
before = resident()
cpu, wall = time.process_time(), time.perf_counter()
build(Path(sys.argv[2]), [Path(sys.argv[1])])
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
frames = len(Store(Path(sys.argv[2])))
print(json.dumps(dict(frames=frames, cpu_s=cpu, wall_s=wall, heap_mb=peak() - before)))
"""


def mptrj_record(atoms: ase.Atoms) -> dict[str, Any]:
    """One frame with the nesting, keys and units of the published file."""
    cell, results = atoms.cell.array, atoms.calc.results
    xx, yy, zz, yz, xz, xy = -1602.1766208 * results["stress"]
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "label": symbol,
            "properties": {},
        }
        for symbol, abc, xyz in zip(
            atoms.symbols, atoms.get_scaled_positions(), atoms.positions, strict=True
        )
    ]
    lattice = {"matrix": cell.tolist(), "pbc": [True] * 3, "volume": atoms.get_volume()}
    energy = results["energy"]
    return {
        "structure": {"@module": "pymatgen.core.structure", "lattice": lattice, "sites": sites},
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 0.5,
        "energy_per_atom": energy / len(atoms),
        "ef_per_atom": energy / len(atoms),
        "e_per_atom_relaxed": energy / len(atoms),
        "force": results["forces"].tolist(),
        "stress": [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
        "magmom": [0.01] * len(atoms),
        "bandgap": 0.0,
    }


def write_mptrj(path: Path, frames: list[ase.Atoms], size: int) -> None:
    """Write the frames again and again, as other materials, ten frames each."""
    materials = {
        f"mp-{m}": {
            f"mp-{m}-0-{k}": mptrj_record(atoms) for k, atoms in enumerate(frames[m : m + 10])
        }
        for m in range(0, len(frames), 10)
    }
    body = json.dumps(materials)[1:-1]
    with path.open("w") as file:
        file.write("{")
        for turn in range(round(size / len(body))):
            file.write((", " if turn else "") + body.replace('"mp-', f'"mp-{turn:03d}'))
        file.write("}")


def test_mptrj_json(real_data, tmp_path):
    path = tmp_path / "mptrj.json"
    write_mptrj(
        path, list(read_structures(real_data / "mptrj" / "mptrj-random-1k.extxyz")), JSON_BYTES
    )
    done = in_a_process(CONVERTING, path, tmp_path / "store")
    size = path.stat().st_size / 1e6
    assert done["frames"] % 1000 == 0
    record(
        "mptrj_json",
        file_mb=size,
        **done,
        mb_per_cpu_s=size / done["cpu_s"],
        mb_per_s=size / done["wall_s"],
        target_mb_per_s=100,
        target_heap_mb=500,
        met=size / done["cpu_s"] >= 100 and done["heap_mb"] < 500,
    )


def write_rows(path: Path, shards: list[Path], rows: int) -> None:
    """Write the rows of genuine shards again and again."""
    records = []
    for shard in shards:
        with (
            lmdb.open(str(shard), subdir=False, readonly=True, lock=False) as source,
            source.begin() as r,
        ):
            records += [bytes(value) for key, value in r.cursor() if key.isdigit()]
    with (
        lmdb.open(str(path), subdir=False, map_size=2**32, lock=False) as target,
        target.begin(write=True) as transaction,
    ):
        for k in range(rows):
            transaction.put(b"%d" % (k + 1), records[k % len(records)])
        transaction.put(b"nextid", zlib.compress(b"%d" % (rows + 1)))


def test_omol25_rows(real_data, tmp_path):
    path = tmp_path / "rows.aselmdb"
    write_rows(path, sorted((real_data / "omol25").glob("*.aselmdb")), ROWS)
    done = in_a_process(CONVERTING, path, tmp_path / "store")
    assert done["frames"] == ROWS
    record(
        "omol25_rows",
        **done,
        atoms_per_row=float(Store(tmp_path / "store").num_atoms.mean()),
        rows_per_cpu_s=ROWS / done["cpu_s"],
        rows_per_s=ROWS / done["wall_s"],
        target_rows_per_s=8000,
        met=ROWS / done["cpu_s"] >= 8000,
    )


SHARING = """
import os
from mlip.data.checkup import examine
from mlip.data.store import Store, build
processes = int(sys.argv[4])
def measured(do):
    before, start = os.times(), time.perf_counter()
    do()
    after, wall = os.times(), time.perf_counter() - start
    own = after.user + after.system - before.user - before.system
    others = after.children_user + after.children_system
    return dict(wall_s=wall, parent_cpu_s=own,
                workers_cpu_s=others - before.children_user - before.children_system)
file, small, folder = map(Path, sys.argv[1:4])
out = dict(convert=measured(lambda: build(folder, [file], processes=processes)))
store = Store(folder)
out['edges'] = measured(lambda: store.edge_counts(5.0, processes, 'fork'))
out['check'] = measured(lambda: examine([small], processes=processes))
out['blake2b'] = store.manifest['blake2b']
print(json.dumps(out))
"""


def test_extxyz_by_several_processes(real_data, tmp_path):
    """300 MB to convert and to count edges in, 120 MB to check; by one process and by two."""
    text = (real_data / "mptrj" / "mptrj-random-1k.extxyz").read_bytes()
    files = []
    for name, times in (("large", 80), ("small", 32)):
        files.append(tmp_path / f"{name}.extxyz")
        files[-1].write_bytes(text * times)
    one, two = (in_a_process(SHARING, *files, tmp_path / f"{n}", n) for n in (1, 2))
    assert one.pop("blake2b") == two.pop("blake2b")
    for name in one:
        record(
            f"extxyz_{name}",
            file_mb=files[name == "check"].stat().st_size / 1e6,
            **{f"one_{key}": value for key, value in one[name].items()},
            **{f"two_{key}": value for key, value in two[name].items()},
            times_faster=one[name]["wall_s"] / two[name]["wall_s"],
        )


OPENING = """
import numpy as np
from mlip.data.batching import Budget, GraphLoader
from mlip.data.store import open_store
before, imported = resident(), time.perf_counter()
store = open_store(Path(sys.argv[1]))
opened = time.perf_counter()
loader = GraphLoader(
    store, np.arange(len(store)), 5.0, Budget(None, max_atoms=1024), seed=1, shuffle=True
)
batches = len(loader)
planned = time.perf_counter()
batch = next(iter(loader))
drawn = time.perf_counter()
assert batch.num_graphs > 10 and batch.edge_index.shape[1] > 0
print(json.dumps(dict(
    structures=len(store), batches=batches, open_s=opened - imported, plan_s=planned - opened,
    first_batch_s=drawn - planned, total_s=drawn - imported, resident_mb=resident(),
    peak_resident_mb=peak(), resident_before_mb=before,
)))
"""


PREPARING = """
import threading
from mlip.data.prepare import prepare_data
from mlip.training.config import load_config
def own():  # without pages of mapped files, which the kernel takes back when it needs them
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith('RssAnon'))
highest = [0.0]
def watch():
    while True:
        highest[0] = max(highest[0], own())
        time.sleep(0.01)
config = load_config([f"data.train={sys.argv[1]}", "data.batch_size=null", "data.max_atoms=1024"])
imported, before = time.process_time(), own()
threading.Thread(target=watch, daemon=True).start()
data = prepare_data(config["data"], cutoff=5.0, seed=0)
print(json.dumps(dict(
    structures=sum(data.size(part) for part in ("train", "val")),
    cpu_s=time.process_time() - imported, peak_mb=highest[0], before_mb=before, after_mb=own(),
)))
"""


def made_store(folder: Path, structures: int) -> None:
    """A store in whose manifest one shard of 100,000 made structures stands again and again."""
    rng = np.random.default_rng(0)
    first = folder / SHARDS / "000-000000-0000"
    first.mkdir(parents=True)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) * 1.5
    with ShardWriter(first) as writer:
        for k in range(0, 100_000, 100):
            frames = []
            for n in rng.integers(2, 60, 100).tolist():
                positions = grid[:n] + rng.uniform(-0.2, 0.2, (n, 3))
                results = {"energy": -float(n), "forces": positions}
                axes = np.zeros((3, 3)), np.zeros(3, bool)
                frames.append(Frame(np.full(n, 6), positions, *axes, results, {}))
            writer.add(Block.of(frames), 0, k, Piece(folder, "extxyz", 0))
        writer.finish(last=True, part_of=0)
    one = json.loads((first / "shard.json").read_text())
    shards = [
        {"name": f"000-{k:06d}-0000", "first_frame": k * 100_000, **one}
        for k in range(structures // 100_000)
    ]
    for shard in shards[1:]:
        copy = folder / SHARDS / shard["name"]
        copy.mkdir()
        for file in first.iterdir():
            (copy / file.name).hardlink_to(file)
    manifest = make_manifest([{"path": "made", "size": 0, "ends": ""}], {}, shards)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_twenty_million_structures(tmp_path):
    made_store(tmp_path, STRUCTURES)
    done = in_a_process(OPENING, tmp_path)
    assert done["structures"] == STRUCTURES
    record(
        "twenty_million_structures",
        **done,
        target_s=5,
        target_resident_mb=1000,
        met=done["total_s"] < 5 and done["peak_resident_mb"] < 1000,
    )


def test_twenty_million_structures_before_the_first_step(tmp_path):
    """Splits, reference energies and statistics, as every run computes them."""
    made_store(tmp_path, STRUCTURES)
    done = in_a_process(PREPARING, tmp_path)
    assert done["structures"] == STRUCTURES
    record("twenty_million_structures_prepared", **done)


def microseconds(call: Callable[[int], object], keys: np.ndarray) -> float:
    """Return the CPU time of a call per key."""
    start = time.process_time()
    for key in keys:
        call(int(key))
    return 1e6 * (time.process_time() - start) / len(keys)


def bytes_on_disk(store: Store) -> float:
    """Return the bytes of a store per structure."""
    return sum(f.stat().st_size for f in store.folder.rglob("*") if f.is_file()) / len(store)


def test_reads(real_data, tmp_path):
    """Random access to OMol25's rows; a text file knows no random access and is read through."""
    shard = tmp_path / "rows.aselmdb"
    write_rows(shard, sorted((real_data / "omol25").glob("*.aselmdb")), 1000)
    frames = list(read_structures(shard))
    ase.io.write(tmp_path / "rows.extxyz", frames, format="extxyz")
    with ase.db.connect(tmp_path / "rows.db") as database:
        for atoms in frames:
            database.write(atoms)
    build(tmp_path / "store", [shard])
    store = Store(tmp_path / "store")
    keys = np.random.default_rng(0).integers(0, 1000, 1000)
    rows = ase.db.connect(str(shard), type="aselmdb")
    database = ase.db.connect(tmp_path / "rows.db")
    build(tmp_path / "index", [shard], in_place=True)
    index = Store(tmp_path / "index")
    store.arrays(0), index.arrays(0)
    times = {
        "store_us": microseconds(store.arrays, keys),
        "in_place_us": microseconds(index.arrays, keys),
        "aselmdb_ase_us": microseconds(lambda k: rows.get_atoms(k + 1), keys),
        "ase_db_us": microseconds(lambda k: database.get_atoms(k + 1), keys),
    }
    start = time.process_time()
    assert len(ase.io.read(tmp_path / "rows.extxyz", ":")) == 1000
    times["extxyz_ase_in_turn_us"] = 1e3 * (time.process_time() - start)
    start = time.process_time()
    assert sum(1 for _ in read_structures(shard)) == 1000
    times["aselmdb_mlip_in_turn_us"] = 1e3 * (time.process_time() - start)
    record(
        "reads",
        **times,
        store_bytes=bytes_on_disk(store),
        in_place_bytes=bytes_on_disk(index),
        aselmdb_bytes=shard.stat().st_size / len(store),
        times_faster_than_aselmdb=times["aselmdb_ase_us"] / times["store_us"],
        times_faster_than_ase_db=times["ase_db_us"] / times["store_us"],
        times_faster_than_extxyz=times["extxyz_ase_in_turn_us"] / times["store_us"],
    )


@pytest.mark.parametrize("name", ["omol25", "omol25_in_place", "mptrj"])
def test_loader_against_training(real_data, tmp_path, name):
    """Structures that two workers make in the time in which Facet-S is trained on one."""
    files = {
        "omol25": sorted((real_data / "omol25").glob("*.aselmdb")),
        "omol25_in_place": sorted((real_data / "omol25").glob("*.aselmdb")),
        "mptrj": [real_data / "mptrj" / "mptrj-random-1k.extxyz"],
    }[name]
    build(tmp_path / "store", files, in_place=name == "omol25_in_place")
    store = Store(tmp_path / "store")
    options = dict(load_config(["model=facet-s"])["model"])
    options.pop("prior")
    architecture = options.pop("name")
    indices = np.arange(len(store))
    species = tuple(int(z) for z in store.compositions(indices)[1])
    loader = GraphLoader(
        store,
        indices,
        float(options["cutoff"]),
        Budget(8),
        shuffle=True,
        num_workers=2,
        repeats=np.full(len(store), 4000 / len(store)),
    )
    begin, made = time.perf_counter(), 0
    for batch in loader:
        made += batch.num_graphs
    loading = made / (time.perf_counter() - begin)
    assert abs(made - 4000) <= 1, "an epoch has as many structures as were asked for"
    table = (dict.fromkeys(species, 0.0),)
    potential = build_potential(PotentialSpec(architecture, options, species, table, 40.0))
    optimizer = torch.optim.AdamW(potential.parameters())
    loader.num_workers = 0
    seen, spent = 0, 0.0
    for batch in loader:
        begin = time.perf_counter()
        out = potential(batch)
        (out.forces.square().mean() + out.energy.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent, seen = spent + time.perf_counter() - begin, seen + batch.num_graphs
        if spent > 20:
            break
    training = seen / spent
    record(
        f"loader_{name}",
        loader_structures_per_s=loading,
        training_structures_per_s=training,
        times=loading / training,
        target_times=5,
        met=loading / training >= 5,
    )
