"""Frame averaging: exact where frames are defined, measured where they are not."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from anisotropic import Anisotropic
from ase.build import bulk, molecule
from conftest import STRUCTURES, predict, rms_force
from scipy.spatial.transform import Rotation
from stencil import RELATIVE, STENCIL, STEP, slope, strained
from torch import nn

from mlip.errors import ConfigError
from mlip.graph import AtomGraph
from mlip.models.frame_averaging import FrameAveraged, principal_axes
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.pair import LennardJones
from mlip.models.potential import Potential

SPECIES = (1, 6, 7, 8)
ZERO = dict.fromkeys(SPECIES, 0.0)
ROTATION = Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix()
# Rounding of ~1e-14 of order-one terms, enlarged by the inverse of the smallest distance between
# eigenvalues (a percent of their sum here).
ROUNDING = 1e-10


class Seeing(nn.Module):
    """Σ_i tanh(w·(x_i − x̄)) u_Z: positions are seen, edges are not; with a direct force."""

    symmetry, is_local, needs_positions = "none", False, True
    cutoff, species = 1.0, SPECIES  # too short for most edges

    def __init__(self, *, conservative: bool = True) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.1, 0.4]]))
        self.conservative = conservative

    def forward(self, geometry: Geometry) -> NodeOutput:
        x, batch = geometry.positions, geometry.batch
        count = torch.bincount(batch, minlength=geometry.num_graphs)[:, None]
        centre = x.new_zeros(geometry.num_graphs, 3).index_add(0, batch, x) / count
        waves = torch.tanh((x - centre[batch]) @ self.directions.to(x) + 0.3)
        direct = None if self.conservative else waves @ self.directions.T.to(x)
        return NodeOutput(waves.sum(1) * geometry.atomic_numbers, features=waves, forces=direct)


def edge_model() -> Anisotropic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Anisotropic(cutoff=4.0, species=SPECIES)
        scale = 1.0 / rms_force(Potential(model, ZERO).double(), STRUCTURES["bulk"]())
        torch.manual_seed(1)
        return Anisotropic(cutoff=4.0, species=SPECIES, force_scale=scale)


MODELS = {"edges": edge_model, "positions": Seeing}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    return MODELS[request.param]()


def framed(model: nn.Module, frames: str = "so3") -> Potential:
    return Potential(FrameAveraged(model, frames), ZERO).double()


def turned(atoms: ase.Atoms, q: np.ndarray) -> ase.Atoms:
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ q.T, scale_atoms=False)
    out.set_positions(atoms.positions @ q.T)
    return out


def linear() -> ase.Atoms:
    out = molecule("CO2")
    out.positions = out.positions @ ROTATION.T  # along no axis of the laboratory
    return out


EXACT = {
    "ethanol": lambda: STRUCTURES["molecule"](),
    "planar": lambda: molecule("H2O"),
    "linear": linear,
    "pair": lambda: ase.Atoms("CO", [[0, 0, 0], [0.5, 0.7, -0.8]]),
    "atom": lambda: ase.Atoms("O", [[0.3, 0.1, 0.2]]),
    "far pair": lambda: ase.Atoms("CO", [[0, 0, 0], [30.0, 20.0, 1.0]]),
}
CRYSTALS = {name: STRUCTURES[name] for name in ("bulk", "slab", "wire", "left-handed")}
TOPS = {
    "symmetric top": lambda: molecule("NH3"),
    "planar top": lambda: molecule("C6H6"),
    "spherical top": lambda: molecule("CH4"),
    "cubic crystal": lambda: bulk("C", "diamond", a=3.6),
}


def change(potential: Potential, atoms: ase.Atoms, q: np.ndarray) -> float:
    """Largest change of energy, forces or virial when the structure is turned by q."""
    a, b = predict(potential, atoms), predict(potential, turned(atoms, q))
    return max(
        (b.energy - a.energy).abs().item(),
        (b.forces.numpy() - a.forces.numpy() @ q.T).__abs__().max(),
        (b.virial[0].numpy() - q @ a.virial[0].numpy() @ q.T).__abs__().max(),
    )


@pytest.mark.parametrize("structure", EXACT)
@pytest.mark.parametrize("frames", ["so3", "o3"])
def test_molecules_are_exact(model, frames, structure):
    """Linear molecules and pairs too: no energy depends on which of their frames is taken."""
    atoms = EXACT[structure]()
    potential = framed(model, frames)
    seen = len(atoms) > 1 and not (isinstance(model, Anisotropic) and structure == "far pair")
    if seen:
        assert change(Potential(model, ZERO).double(), atoms, ROTATION) > 1e-2, "exact without it"
        assert predict(potential, atoms).forces.abs().max() > 1e-3
    assert change(potential, atoms, ROTATION) < ROUNDING
    if frames == "o3":
        assert change(potential, atoms, -ROTATION) < ROUNDING
    assert potential.symmetry == {"so3": "SO(3)", "o3": "O(3)"}[frames]


def test_reflections_change_what_only_rotations_were_averaged_over():
    atoms = EXACT["ethanol"]()
    assert change(framed(edge_model(), "so3"), atoms, -ROTATION) > 1e-2


@pytest.mark.parametrize("structure", CRYSTALS)
def test_crystals_are_exact(structure):
    atoms = CRYSTALS[structure]()
    assert change(Potential(edge_model(), ZERO).double(), atoms, ROTATION) > 1e-2
    for q in (ROTATION, -ROTATION):
        assert change(framed(edge_model(), "o3"), atoms, q) < ROUNDING


@pytest.mark.parametrize("structure", ["ethanol", "planar", "bulk", "slab"])
def test_forces_and_virial_are_derivatives(model, structure):
    if isinstance(model, Seeing) and structure in CRYSTALS:
        pytest.skip("the toy that sees positions is for molecules")
    atoms = ({**EXACT, **CRYSTALS})[structure]()
    potential = framed(model)
    out = predict(potential, atoms)
    moved = []
    for i, k in np.ndindex(len(atoms), 3):
        for step in STENCIL:
            moved.append(atoms.copy())
            moved[-1].positions[i, k] += step * STEP
    numeric = -slope(predict(potential, *moved).energy.numpy()).reshape(-1, 3)
    scale = max(1.0, out.forces.abs().max().item(), out.virial.abs().max().item())
    # eigenvalues differ by a few percent of their sum: derivatives of fifth order are that much
    # larger than the model's, and the truncation error with them
    np.testing.assert_allclose(out.forces, numeric, rtol=0, atol=RELATIVE * scale)
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    moved = [strained(atoms, a, b, step * STEP) for a, b in pairs for step in STENCIL]
    numeric = slope(predict(potential, *moved).energy.numpy())
    ours = np.array([out.virial[0, a, b] for a, b in pairs])
    np.testing.assert_allclose(ours, numeric, rtol=0, atol=RELATIVE * scale)


def test_the_frame_must_be_differentiated():
    """Frames held fixed are no shortcut: their forces have a torque, an invariant energy none."""
    atoms = EXACT["ethanol"]()
    graph = AtomGraph.from_atoms(atoms, 4.0)

    class Held(FrameAveraged):
        def tensor(self, geometry: Geometry) -> torch.Tensor:
            return super().tensor(geometry).detach()

    def torque(potential: Potential) -> float:
        with torch.no_grad():
            forces = potential(graph).forces.numpy()
        return float(np.abs(np.cross(atoms.positions, forces).sum(0)).max())

    assert torque(Potential(Held(edge_model(), "so3"), ZERO).double()) > 1e-2
    assert torque(framed(edge_model())) < ROUNDING


def test_training_differentiates_twice(model):
    """Hessians are right and symmetric, and a loss on forces reaches every weight."""
    atoms = EXACT["ethanol"]()[:4]
    potential = framed(model)
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)

    def outputs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        graph.positions = x
        out = potential(graph)
        return out.forces, out.virial

    x = graph.positions.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(outputs, (x,), eps=1e-5, atol=1e-6, rtol=1e-6)
    outputs(x.detach())[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-9 for p in directions(potential))


def directions(potential: Potential) -> list[nn.Parameter]:
    return [p for name, p in potential.named_parameters() if "directions" in name]


@pytest.mark.parametrize("structure", [*EXACT, *TOPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_frames_give_finite_numbers_and_gradients(structure, dtype):
    atoms = {**EXACT, **TOPS}[structure]()
    potential = framed(edge_model()).to(dtype)
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    out = potential(graph)
    largest = max(1.0, out.energy.abs().item())
    for value in (out.energy, out.forces, out.virial):
        assert torch.isfinite(value).all()
        assert value.abs().max() < 100 * largest
    if structure not in ("atom", "far pair"):
        (out.forces.square().sum() + out.virial.square().sum()).backward()
        for p in potential.parameters():
            assert p.grad is not None
            assert torch.isfinite(p.grad).all()


def test_the_jump_where_two_axes_are_equal():
    """The limit of E at a sixfold axis depends on the way there; forces grow like 1/distance.

    C6H6 is sheared by ε in its plane in twelve directions. A continuous energy would have one
    limit for ε → 0; this one has a range of limits, as large as the change of the model's own
    energy (averaged over signs) when the molecule is turned about its axis, which lies along the
    first axis of the frame.
    """
    potential = framed(edge_model(), "o3")
    plain = Potential(edge_model(), ZERO).double()
    top = molecule("C6H6")
    top.positions -= top.positions.mean(0)
    angles = np.linspace(0, np.pi, 12, endpoint=False)

    def sheared(size: float, angle: float) -> ase.Atoms:
        c, s = size * np.cos(2 * angle), size * np.sin(2 * angle)
        out = top.copy()
        out.positions = top.positions @ np.array([[1 + c, s, 0], [s, 1 - c, 0], [0, 0, 1]])
        return out

    jump, force = {}, {}
    for size in (1e-5, 1e-6, 1e-7):
        scan = [sheared(size, a) for a in angles]
        out = predict(potential, *scan)
        jump[size], force[size] = np.ptp(out.energy.numpy()), out.forces.abs().max().item()
        own = predict(plain, *scan)
        bound = 2 * own.forces.abs().sum().item() * size * np.abs(top.positions).max()
        assert np.ptp(own.energy.numpy()) < bound, "the model itself is not continuous"
    flat = top.copy()
    flat.positions = top.positions[:, [2, 0, 1]]
    asymmetry = []
    for a in angles:
        spun = turned(flat, Rotation.from_rotvec([a, 0, 0]).as_matrix())
        mirrored = [turned(spun, np.diag(s)) for s in potential.model.signs.numpy()]
        asymmetry.append(predict(plain, *mirrored).energy.mean().item())
    assert jump[1e-7] > 1e-3, "continuous: this molecule tests nothing"
    # ε = 1e-6 changes energies by 1e-6 of order-one forces
    assert jump[1e-7] == pytest.approx(jump[1e-6], rel=1e-2)
    assert jump[1e-7] == pytest.approx(np.ptp(asymmetry), rel=1e-2)
    assert force[1e-7] == pytest.approx(10 * force[1e-6], rel=0.2)
    assert force[1e-7] > 50 * predict(plain, top).forces.abs().max().item()


def test_supercells_are_exact_and_far_fragments_are_not():
    potential = framed(edge_model())
    atoms = STRUCTURES["bulk"]()
    one, many = predict(potential, atoms), predict(potential, atoms * (2, 1, 3))
    assert many.energy.item() == pytest.approx(6 * one.energy.item(), abs=6 * ROUNDING)
    fragment = molecule("H2O")
    other = turned(molecule("CO2"), ROTATION)
    other.positions += [60.0, 0, 0]
    both = predict(potential, fragment + other).energy.item()
    apart = sum(predict(potential, a).energy.item() for a in (fragment, other))
    assert abs(both - apart) > 1e-3
    assert not potential.is_local
    assert not potential.extensive


def test_a_direct_head_is_turned_back():
    potential = framed(Seeing(conservative=False))
    assert not potential.conservative
    atoms = EXACT["ethanol"]()
    a, b = predict(potential, atoms), predict(potential, turned(atoms, ROTATION))
    assert a.forces.abs().max() > 1e-2
    np.testing.assert_allclose(b.forces, a.forces.numpy() @ ROTATION.T, atol=ROUNDING)
    torch.testing.assert_close(b.features, a.features, rtol=0, atol=ROUNDING)


def test_axes_are_a_right_handed_eigensystem():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 3, 3, dtype=torch.float64, generator=generator)
    matrix = root @ root.transpose(1, 2)
    axes = principal_axes(matrix)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(50).double())
    inside = axes.transpose(1, 2) @ matrix @ axes
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2))
    assert off.abs().max() < 1e-12
    x = matrix[:3].clone().requires_grad_(True)

    def squares(m: torch.Tensor) -> torch.Tensor:  # of axes, which have no sign
        q = principal_axes(0.5 * (m + m.transpose(1, 2)))
        return torch.einsum("bxa,bya->baxy", q, q)

    assert torch.autograd.gradcheck(squares, (x,))
    assert torch.autograd.gradgradcheck(squares, (x,))


def test_what_is_symmetric_already_is_refused():
    exact = LennardJones(cutoff=4.0, species=SPECIES)
    for frames in ("so3", "o3"):
        with pytest.raises(ConfigError, match=r"exactly O\(3\)-equivariant by itself"):
            FrameAveraged(exact, frames)
    exact.symmetry = "SO(3)"
    with pytest.raises(ConfigError, match=r"exactly SO\(3\)-equivariant by itself"):
        FrameAveraged(exact, "so3")
    assert FrameAveraged(exact, "o3").symmetry == "O(3)"
    with pytest.raises(ConfigError, match=r"model.frames='so2' must be one of so3, o3"):
        FrameAveraged(edge_model(), "so2")


@pytest.mark.parametrize(
    ("structure", "share"),
    [
        ("symmetric top", 0.002),
        ("planar top", 0.002),
        ("spherical top", 0.2),
        ("cubic crystal", 0.6),
    ],
)
def test_how_large_the_jump_is(structure, share):
    """Over strains of 1e-6, beside the change of the model's own energy over rotations.

    Standard deviations of 150 each: the numbers in the docstring of `frame_averaging`.
    """
    rng = np.random.default_rng(0)
    potential, plain = framed(edge_model(), "o3"), Potential(edge_model(), ZERO).double()
    top = TOPS[structure]()
    strained, spun = [], []
    for k in range(150):
        strain = rng.normal(size=(3, 3))
        strain = 1e-6 * (strain + strain.T) / np.linalg.norm(strain + strain.T)
        strained.append(turned(top, np.eye(3) + strain))
        spun.append(turned(top, Rotation.random(random_state=k).as_matrix()))
    jump, own = predict(potential, *strained).energy, predict(plain, *spun).energy
    assert (jump.std() / own.std()).item() == pytest.approx(share, rel=0.2)
