"""NequIP: published sizes by arithmetic, e3nn as the oracle, options that are refused."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import ase
import e3nn
import numpy as np
import pytest
import torch
from conftest import SPECIES, build, predict
from e3nn import o3
from e3nn.nn import Gate as E3nnGate
from scipy.integrate import quad

from mlip.errors import ConfigError
from mlip.graph import AtomGraph
from mlip.models.edges import Edges
from mlip.models.geometry import Geometry
from mlip.models.harmonics import coupling, even_paths
from mlip.models.nequip import SILU_GAIN, TANH_GAIN, Convolution, Gate, Mix, NequIP, _coupling
from mlip.models.nequip import _coupling as clebsch_gordan
from mlip.models.registry import PotentialSpec, build_potential
from mlip.training.config import load_config

# -- size ----------------------------------------------------------------------------------------


def preset(name: str) -> torch.nn.Module:
    """One of conf/model, for 89 elements."""
    options = dict(load_config([f"model={name}"])["model"])
    architecture = options.pop("name")
    options.pop("prior")
    spec = PotentialSpec(architecture, options, tuple(range(1, 90)), ({},), 30.0)
    return build_potential(spec).model


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def triangles(degrees_in, degrees_edge, degrees_out):
    return [
        (a, b, c)
        for a, b, c in product(degrees_in, degrees_edge, degrees_out)
        if abs(a - b) <= c <= a + b
    ]


def natural(degrees_in, degrees_edge, degrees_out):
    paths = triangles(degrees_in, degrees_edge, degrees_out)
    return [path for path in paths if sum(path) % 2 == 0]


def layer(c_in, c_out, top, rule, radial, attributes):
    """Two mixes, the radial MLP and a self-connection with `attributes` matrices (or none)."""
    outputs = range(len(c_out))
    with_gates = [c_out[0] + sum(c_out[1:]), *c_out[1:]]  # a gate for each channel of degree > 0
    paths = rule(range(len(c_in)), range(top + 1), outputs)
    gathered = [sum(c_in[a] for a, _, c in paths if c == degree) for degree in outputs]
    mix_in = sum(c * c for c in c_in)
    mlp = sum(a * b for a, b in zip(radial, [*radial[1:], sum(gathered)], strict=True))
    mix_out = sum(a * b for a, b in zip(gathered, with_gates, strict=True))
    kept = sum(a * b for a, b in zip(c_in, with_gates, strict=False))
    return mix_in + mlp + mix_out + attributes * kept


def layers(channels, num_layers, first, **rest):
    """Embedding -> all -> ... -> all -> scalars."""
    shapes = [[first], *[channels] * (num_layers - 1), channels[:1]]
    attributes = rest.pop("attributes")
    return sum(
        layer(a, b, len(channels) - 1, attributes=n, **rest)
        for a, b, n in zip(shapes, shapes[1:], attributes, strict=False)
    )


def test_sevennet_0_has_its_published_parameters_but_for_its_constants():
    """842,623 in the published checkpoint, 183 of which are constants that are stored."""
    embedding, readout, frequencies = 89 * 128, 128 * 64 + 64, 8
    network = layers([128, 64, 32], 5, 128, rule=triangles, radial=[8, 64, 64], attributes=[1] * 5)
    ours = embedding + network + readout + frequencies
    shifts, scales, denominators = 89, 89, 5  # E0, force scale and mean neighbour count here
    assert ours + shifts + scales + denominators == 842_623
    assert count(preset("sevennet-0")) == ours == 842_440


@pytest.mark.parametrize(
    ("name", "channels", "num_layers", "published"),
    [
        ("nequip-s", [128, 64], 2, 616_352),
        ("nequip-m", [128, 64, 32], 4, 3_189_664),
        ("nequip-l", [128, 64, 32, 32], 6, 6_836_128),
    ],
)
def test_nequip_presets_have_the_published_layout(name, channels, num_layers, published):
    """Counts of the published code for 89 elements; no self-connection in the first layer."""
    embedding, readout = 89 * 32, 128
    attributes = [0, *[32] * (num_layers - 1)]
    network = layers(channels, num_layers, 32, rule=natural, radial=[8, 128], attributes=attributes)
    assert count(preset(name)) == embedding + network + readout == published


def test_both_parities_are_there_once_they_can_be():
    """0e ⊗ Y gives natural parities only; 1o ⊗ 1o gives 1e, and 1e ⊗ 1o then 0o."""
    model = build("nequip-full").model
    found = [{str(ir) for _, ir in layer.irreps_out} for layer in model.layers]
    both = {"0e", "1e", "1o", "2e", "2o"}
    assert found == [{"0e", "1o", "2e"}, both, both | {"0o"}, {"0e"}]


# -- symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "declared"),
    [("nequip", "O(3)"), ("nequip-full", "O(3)"), ("nequip-sevennet", "SO(3)")],
)
def test_the_declared_symmetry_is_all_there_is(name, declared, molecule_atoms):
    """Even features everywhere tell left from right: the SO(3) model must not claim reflections."""
    potential = build(name)
    assert potential.symmetry == declared
    mirrored = molecule_atoms.copy()
    mirrored.positions[:, 0] *= -1.0
    both = [predict(potential, a).energy.item() for a in (molecule_atoms, mirrored)]
    if declared == "O(3)":
        assert both[0] == pytest.approx(both[1], abs=1e-10)
    else:
        assert abs(both[0] - both[1]) > 1e-4


def test_charge_and_spin_are_exactly_neutral_for_the_reference_state(molecule_atoms):
    potential, blind = build("nequip-charge"), build("nequip-charge")
    blind.model.uses_charge_spin = False
    for atoms in (molecule_atoms, ase.Atoms("O")):  # a lone ion is not a lone atom
        without = predict(blind, atoms).energy.item()
        for charge, spin, same in ((0, 1, True), (0, 0, True), (1, 2, False), (0, 3, False)):
            atoms.info.update(charge=charge, spin=spin)
            assert (predict(potential, atoms).energy.item() == without) is same, (charge, spin)


@pytest.mark.parametrize("name", ["nequip", "nequip-sevennet"])
def test_reach_is_layers_times_cutoff(name):
    potential = build(name)
    reach, spacing = len(potential.model.layers), 0.55 * potential.cutoff
    positions = np.random.default_rng(4).normal(scale=0.1, size=(2 * reach + 3, 3))
    positions[:, 0] += spacing * np.arange(len(positions))
    graph = AtomGraph.from_atoms(ase.Atoms([6] * len(positions), positions), potential.cutoff)
    graph.positions.requires_grad_(True)
    first = potential(graph, derivatives=False).node_energy[0]
    (gradient,) = torch.autograd.grad(first, graph.positions)
    influence = gradient.abs().amax(1)
    assert (influence[: reach + 1] > 1e-12).all()
    assert not influence[reach + 1 :].any()


# -- e3nn as the oracle --------------------------------------------------------------------------


@pytest.fixture
def eager():
    """e3nn without TorchScript, and with constants in double precision."""
    before = e3nn.get_optimization_defaults()["jit_mode"], torch.get_default_dtype()
    e3nn.set_optimization_defaults(jit_mode="eager")
    torch.set_default_dtype(torch.float64)
    yield
    e3nn.set_optimization_defaults(jit_mode=before[0])
    torch.set_default_dtype(before[1])


def random_features(irreps: o3.Irreps, n: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, ir.dim, mul, generator=g, dtype=torch.float64) for mul, ir in irreps]


def flat(x: list[torch.Tensor]) -> torch.Tensor:
    """Our list of (N, 2l+1, C) as e3nn's (N, ΣC(2l+1))."""
    return torch.cat([value.transpose(1, 2).flatten(1) for value in x], dim=1)


def random_geometry(n: int = 7, cutoff: float = 4.0) -> Geometry:
    positions = np.random.default_rng(0).normal(scale=1.5, size=(n, 3))
    graph = AtomGraph.from_atoms(ase.Atoms(["C"] * n, positions), cutoff)
    j, i = graph.edge_index
    vectors = graph.positions[j] - graph.positions[i]
    return Geometry(
        atomic_numbers=graph.atomic_numbers,
        edge_index=graph.edge_index,
        edge_vectors=vectors,
        edge_lengths=vectors.norm(dim=1),
        batch=graph.batch,
        num_graphs=1,
        charge=graph.charge,
        spin=graph.spin,
        head=graph.head,
        pbc=graph.pbc,
    )


@pytest.mark.parametrize(
    ("irreps", "edge"),
    [
        ("3x0e+2x1o+4x2e", "0e+1o+2e"),
        ("3x0e+2x0o+2x1e+3x1o+2x2e+1x2o", "0e+1o+2e"),
        ("3x0e+2x1e+4x2e+1x3e", "0e+1e+2e+3e"),
    ],
    ids=["natural", "full", "none"],
)
@pytest.mark.usefixtures("eager")
def test_convolution_is_e3nns_tensor_product(irreps, edge):
    """Same paths, same order of weights, component normalisation: equal to rounding."""
    irreps, edge = o3.Irreps(irreps), o3.Irreps(edge)
    torch.manual_seed(0)
    convolution = Convolution(irreps, edge, irreps, [5, 6], norm=0.3).double()
    geometry, h = random_geometry(), random_features(irreps, 7)
    assert torch.bincount(geometry.edge_index[1]).min() > 1
    centres = torch.arange(5, dtype=torch.float64)
    blocks = Edges.build(
        geometry, lambda r: torch.exp(-((r[:, None] - centres) ** 2)), edge.lmax, _coupling
    )
    ours = convolution(h, blocks)

    instructions, mid = [], []
    for k, (_, out) in enumerate(irreps):
        for a, (mul, ir) in enumerate(irreps):
            for b, (_, ir_edge) in enumerate(edge):
                if out in ir * ir_edge:
                    instructions.append((a, b, len(mid), "uvu", True))
                    mid.append((k, mul, out))
    product = o3.TensorProduct(
        irreps,
        edge,
        [(mul, ir) for _, mul, ir in mid],
        instructions,
        shared_weights=False,
        internal_weights=False,
    ).double()
    j, i = geometry.edge_index
    radial = torch.exp(-((geometry.edge_lengths[:, None] - centres) ** 2))
    weights = torch.nn.functional.silu(radial @ convolution.radial[0]) @ convolution.radial[1]
    # their polar axis is y: our (x, y, z) is their (z, x, y)
    y = o3.spherical_harmonics(
        edge, geometry.edge_vectors[:, [1, 2, 0]], normalize=True, normalization="component"
    )
    messages = product(flat(h)[j], y, weights)
    summed = 0.3 * torch.zeros(7, messages.shape[1], dtype=torch.float64).index_add(0, i, messages)
    collected = [[] for _ in irreps]
    for (k, mul, ir), columns in zip(mid, product.irreps_out.slices(), strict=True):
        collected[k].append(summed[:, columns].view(7, mul, ir.dim).transpose(1, 2))
    for value, parts in zip(ours, collected, strict=True):
        torch.testing.assert_close(value, torch.cat(parts, dim=2), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("eager")
def test_self_connection_is_e3nns_fully_connected_product():
    before, after = o3.Irreps("3x0e+2x1o+4x2e"), o3.Irreps("5x0e+3x1o+2x2e")
    torch.manual_seed(0)
    mix = Mix(before, after, attributes=6).double()
    x, a = random_features(before, 7), torch.randn(7, 6, dtype=torch.float64)
    product = o3.FullyConnectedTensorProduct(before, "6x0e", after, internal_weights=False).double()
    # theirs: (C_in, A, C_out) and a factor (A C_in)^-1/2 that ours has in the weights
    weights = [
        w.view(6, -1, w.shape[1]).transpose(0, 1).flatten() * (6 * mul) ** 0.5
        for w, (mul, _) in zip(mix.weights, before, strict=True)
    ]
    theirs = product(flat(x), a, torch.cat(weights))
    torch.testing.assert_close(flat(mix(x, a)), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("irreps", ["5x0e+3x1o+2x2e", "4x0e+3x0o+2x1e+3x1o", "4x0e"])
@pytest.mark.usefixtures("eager")
def test_gate_is_e3nns(irreps):
    irreps = o3.Irreps(irreps)
    gate = Gate(irreps)
    x = random_features(gate.irreps_in, 50)
    scalars = [(mul, ir) for mul, ir in irreps if ir.l == 0]
    gated = [(mul, ir) for mul, ir in irreps if ir.l > 0]
    acts = {1: torch.nn.functional.silu, -1: torch.tanh}
    oracle = E3nnGate(
        scalars,
        [acts[ir.p] for _, ir in scalars],
        [(mul, "0e") for mul, _ in gated],
        [acts[1]] * len(gated),
        gated,
    ).double()
    assert oracle.irreps_in.dim == o3.Irreps(gate.irreps_in).dim
    order = [ir for _, ir in gate.irreps_in]
    theirs = oracle(flat([x[order.index(ir)] for _, ir in oracle.irreps_in]))
    # theirs draw a million samples for the gains, which are good to 1/sqrt(1e6) times a few
    torch.testing.assert_close(flat(gate(x)), theirs, rtol=5e-3, atol=1e-12)


def test_gains_make_the_second_moment_one():
    def moment(f):
        density = lambda z: np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)  # noqa: E731
        return quad(lambda z: f(z) ** 2 * density(z), -12.0, 12.0, limit=200)[0]

    assert SILU_GAIN**2 * moment(lambda z: z / (1.0 + np.exp(-z))) == pytest.approx(1.0, abs=1e-8)
    assert TANH_GAIN**2 * moment(np.tanh) == pytest.approx(1.0, abs=1e-8)


def test_couplings_are_ours_where_ours_exist():
    """e3nn's coefficients in our axes: Gaunt integrals up to a sign, for even sums of degrees."""
    degrees = (0, 1, 2, 3)
    for path in even_paths(degrees, 3, degrees):
        l1, l2, l3 = path
        theirs = clebsch_gordan(path, torch.float64, torch.device("cpu"))
        theirs = theirs.view(2 * l2 + 1, 2 * l3 + 1, 2 * l1 + 1).permute(2, 0, 1).numpy()
        ours = coupling(l1, l2, l3)
        sign = np.sign((ours * theirs).sum())
        np.testing.assert_allclose(sign * theirs, ours, atol=1e-12)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parity": "odd"}, r"model\.parity='odd' must be one of natural, full, none"),
        (
            {"self_connection": "nequip"},
            r"model\.self_connection='nequip' must be one of element, linear",
        ),
        ({"channels": (8,)}, r"model\.channels=\[8\] must list 2 to 5 numbers"),
        ({"channels": (8,) * 6}, "must list 2 to 5 numbers"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"channels": (8, 0)}, r"channels=\[8, 0\] must be at least 1"),
        ({"radial_widths": (8, 0)}, r"radial_widths=\[8, 0\]"),
        ({"embedding": 0}, "embedding=0 must be at least 1"),
        ({"readout_width": 0}, "readout_width=0 must be at least 1"),
        ({"envelope_power": 1}, "envelope_power=1 must be at least 2"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NequIP(cutoff=4.0, species=SPECIES, avg_num_neighbors=20.0, **options)


def test_radial_widths_may_be_empty():
    """Then path weights are linear in the basis, as Facet's are."""
    model = NequIP(cutoff=4.0, species=SPECIES, avg_num_neighbors=20.0, radial_widths=())
    assert [len(layer.convolution.radial) for layer in model.layers] == [1, 1]


def test_nothing_else_imports_e3nn():
    """It costs more than a second: only a NequIP potential pays."""
    script = (
        "import sys, mlip, mlip.calculator, mlip.cli.main, mlip.models.registry as r; "
        "s = r.PotentialSpec('facet', {'cutoff': 4.0}, (1,), ({1: 0.0},), 9.0); "
        "r.build_potential(s); assert 'e3nn' not in sys.modules; "
        "r.build_potential(r.PotentialSpec('nequip', *[getattr(s, k) for k in "
        "('hyperparameters', 'species', 'reference_energies', 'avg_num_neighbors')])); "
        "assert 'e3nn' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
