"""The table of planted bugs: mistakes that were made somewhere in this field, or nearly made here.

Each row is one textual replacement in one file and the tests that must fail because of it, every
one of them. A bug that no test notices is a hole in the suite: write the test, then add the row.
"""

from __future__ import annotations

from dataclasses import dataclass

CONSERVATION = "tests/physics/test_conservation.py"
DERIVATIVES = "tests/physics/test_derivatives.py"
LIMITS = "tests/physics/test_limits.py"
PRECISION = "tests/physics/test_precision.py"
SMOOTHNESS = "tests/physics/test_smoothness.py"
SYMMETRY = "tests/physics/test_symmetry.py"
GRAPH = "tests/unit/test_graph.py"
NEIGHBORS = "tests/unit/test_neighbors.py"
DEVICE = "tests/unit/test_device_neighbors.py"
DATA = "tests/unit/data/test_data_path.py"
SOURCES = "tests/unit/data/test_sources.py"
PARTS = "tests/unit/readers/test_extxyz_parts.py"
LOADER = "tests/unit/data/test_loader.py"
DOCTORS = "tests/unit/checkup/test_several_processes.py"
DIVIDED = "tests/unit/data/test_divided_extxyz.py"
INDEX = "tests/unit/data/test_in_place.py"
SKIPPED = "tests/unit/data/test_bad_frames.py"
HEADS = "tests/physics/test_heads.py"
LOSS = "tests/unit/training/test_loss.py"
OBJECTIVES = "tests/unit/training/test_objectives.py"
TRANSIP = "tests/unit/test_transip.py"
FRAMES = "tests/physics/test_frames.py"
GROUPS = "tests/unit/test_symmetry.py"
CALCULATOR = "tests/unit/test_calculator.py"
SUMS = "tests/unit/test_kernels.py"
FUSED = "tests/unit/test_fused_sum.py"
CAPTURED = "tests/unit/test_captured.py"
COMPARE = "tests/integration/test_compare.py"
ELSEWHERE = "tests/integration/test_elsewhere.py"

OTHER_KEY = "test_frames_whose_label_is_under_another_key_than_in_earlier_stretches"

POTENTIAL = "mlip/models/potential.py"
FACET = "mlip/models/facet.py"
NEQUIP = "mlip/models/nequip.py"
ATTENTION = "mlip/models/attention.py"
ROTATIONS = "mlip/symmetry.py"
OBJECTIVE = "mlip/training/objectives.py"


@dataclass(frozen=True)
class Bug:
    """One mistake."""

    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: tuple[str, ...]  # node ids; without parameters, one of its cases must fail


# -- forces, virial, stress ----------------------------------------------------------------------

MECHANICS = (
    Bug(
        "forces point uphill",
        POTENTIAL,
        ".index_add(0, i, g).index_add(0, j, -g)",
        ".index_add(0, i, -g).index_add(0, j, g)",
        (f"{DERIVATIVES}::test_forces[lennard_jones-molecule]",),
    ),
    Bug(
        "forces are 0.1 % too large",
        POTENTIAL,
        "    g = grads[0].double()",
        "    g = 1.001 * grads[0].double()",
        (f"{DERIVATIVES}::test_forces[facet-bulk]",),
    ),
    Bug(
        "stress has VASP's sign",
        POTENTIAL,
        "virial / volume[:, None, None]",
        "-virial / volume[:, None, None]",
        (f"{DERIVATIVES}::test_a_squeezed_crystal_has_negative_stress",),
    ),
    Bug(
        "volume keeps the sign of the determinant",
        POTENTIAL,
        "torch.linalg.det(graph.cell).abs()",
        "torch.linalg.det(graph.cell)",
        (f"{DERIVATIVES}::test_virial_and_stress[facet-left-handed]",),
    ),
    Bug(
        "virial is not symmetrised",
        POTENTIAL,
        "    return forces, 0.5 * (virial + virial.transpose(1, 2))",
        "    return forces, virial",
        (f"{DERIVATIVES}::test_virial_and_stress[facet-silu-L3-molecule]",),
    ),
    Bug(
        "strain moves the atoms but not the cell",
        POTENTIAL,
        "cell = cell + cell @ symmetric",
        "cell = cell + 0.0 * cell @ symmetric",
        ("tests/physics/test_global_models.py::test_a_volume_term_is_a_pressure",),
    ),
    Bug(
        "shear components leave the calculator in VASP's order",
        "mlip/calculator.py",
        "full_3x3_to_voigt_6_stress(stress)",
        "full_3x3_to_voigt_6_stress(stress)[[0, 1, 2, 5, 3, 4]]",
        ("tests/unit/test_calculator.py::test_stress_is_the_strain_derivative_in_ase_order",),
    ),
    Bug(
        "shear components are swapped between files and results",
        "mlip/data/readers/canonical.py",
        "0.5 * (yz + zy), 0.5 * (xz + zx)",
        "0.5 * (xz + zx), 0.5 * (yz + zy)",
        ("tests/unit/readers/test_mptrj.py::test_kbar_of_vasp_to_ase",),
    ),
    Bug(
        "a fault in a block of frames is put on another frame",
        "mlip/data/readers/blocks.py",
        "_canonical(canonical, some, index)",
        "_canonical(canonical, some, first)",
        ("tests/unit/readers/test_blocks.py::test_a_fault_is_that_of_its_frame",),
    ),
    Bug(
        "a frame without atoms passes in a block of others",
        "mlip/data/readers/blocks.py",
        "if not raw.counts.all()",
        "if not raw.counts.any()",
        ("tests/unit/readers/test_mptrj.py::test_a_frame_without_atoms_is_refused_among_others",),
    ),
    Bug(
        "energies move up where a frame of a block has none",
        "mlip/data/readers/blocks.py",
        "block.energy[column.has] = ",
        "block.energy[: column.has.sum()] = ",
        ("tests/unit/readers/test_mptrj.py::test_what_is_stacked_is_what_is_read_one_by_one",),
    ),
    Bug(
        "kbar keep VASP's sign",
        "mlip/data/readers/pymatgen_json.py",
        'KBAR_VASP: Final = -stress_factor("kbar")',
        'KBAR_VASP: Final = stress_factor("kbar")',
        ("tests/unit/readers/test_mptrj.py::test_kbar_of_vasp_to_ase",),
    ),
    Bug(
        "external pressure pulls",
        "mlip/relax.py",
        "scalar_pressure=self.pressure_gpa * GPA",
        "scalar_pressure=-self.pressure_gpa * GPA",
        ("tests/unit/test_relax_and_dynamics.py::test_a_crystal_under_pressure_pushes_back",),
    ),
    Bug(
        "femtoseconds are taken for ASE's unit of time",
        "mlip/dynamics.py",
        "dt = timestep_fs * units.fs",
        "dt = timestep_fs",
        ("tests/unit/test_relax_and_dynamics.py::test_a_free_atom_flies_at_its_speed",),
    ),
    Bug(
        "forces used in training are cut from the weights",
        POTENTIAL,
        "create_graph=create_graph, materialize_grads=True",
        "create_graph=False, retain_graph=True, materialize_grads=True",
        (f"{DERIVATIVES}::test_parameter_gradients_of_a_loss[lennard_jones-bulk]",),
    ),
    Bug(
        "features of a prediction keep its graph alive",
        POTENTIAL,
        "interaction, output = interaction.detach(), _detached(output)",
        "interaction = interaction.detach()",
        (f"{PRECISION}::test_gradient_mode_changes_nothing[facet]",),
    ),
)

# -- neighbours and periodic images --------------------------------------------------------------

LATTICE = (
    Bug(
        "images are ignored unless all three axes are periodic",
        POTENTIAL,
        "cell[graph.batch[i]])",
        "(cell * graph.pbc.all(1)[:, None, None])[graph.batch[i]])",
        (f"{SYMMETRY}::test_wrapping[facet-slab]", f"{SYMMETRY}::test_wrapping[facet-wire]"),
    ),
    Bug(
        "lattice vectors are taken for columns",
        POTENTIAL,
        '"ek,ekx->ex"',
        '"ek,exk->ex"',
        (f"{GRAPH}::test_edge_vectors_are_those_of_the_convention[bulk]",),
    ),
    Bug(
        "only the nearest image counts",
        "mlip/neighbors.py",
        "    if len(distance) and distance.min() == 0.0:",
        '    order = np.argsort(distance, kind="stable")\n'
        "    first = np.unique(np.stack([i, j])[:, order], axis=1, return_index=True)[1]\n"
        "    kept = np.sort(order[first])\n"
        "    i, j, shift, distance = i[kept], j[kept], shift[kept], distance[kept]\n"
        "    if len(distance) and distance.min() == 0.0:",
        (
            f"{NEIGHBORS}::test_equals_brute_force",
            f"{SYMMETRY}::test_supercell[lennard_jones-211]",
        ),
    ),
    Bug(
        "the last shell within the cutoff is lost",
        "mlip/neighbors.py",
        "NeighborList(cutoff=cutoff, ",
        "NeighborList(cutoff=0.95 * cutoff, ",
        (f"{NEIGHBORS}::test_the_oracle_counts_a_lattice_it_can_look_up",),
    ),
    Bug(
        "the last shell of images is lost",
        "mlip/neighbors.py",
        "np.arange(-np.ceil(margin[axis]), np.ceil(margin[axis]) + 1)",
        "np.arange(-np.floor(margin[axis]), np.floor(margin[axis]) + 1)",
        (f"{NEIGHBORS}::test_equals_brute_force",),
    ),
    Bug(
        "neighbours are capped at 64",
        "mlip/neighbors.py",
        "    edge_index = np.stack([",
        "    near = [np.flatnonzero(i == c) for c in range(len(positions))]\n"
        "    kept = np.concatenate([e[np.argsort(distance[e])[:64]] for e in near])\n"
        "    i, j, shift = i[kept], j[kept], shift[kept]\n"
        "    edge_index = np.stack([",
        (
            f"{NEIGHBORS}::test_the_cutoff_is_exclusive_and_edges_are_never_capped",
            f"{SMOOTHNESS}::test_an_atom_crosses_the_cutoff_of_a_crowded_site[lennard_jones]",
        ),
    ),
    Bug(
        "on a device, shifts of atoms outside the cell point the other way",
        "mlip/device_neighbors.py",
        "(image[k] - wrap[j] + wrap[i])",
        "(image[k] + wrap[j] - wrap[i])",
        (
            f"{DEVICE}::test_wrapping_moves_shifts_only",
            f"{DEVICE}::test_structures_of_every_kind_share_a_batch",
            f"{DEVICE}::test_a_calculator_gives_the_same",
        ),
    ),
    Bug(
        "on a device, a cell has the images next to it only",
        "mlip/device_neighbors.py",
        "(-reach - fractional).ceil() * pbc",
        "(-reach - fractional).ceil().clamp(min=-1) * pbc",
        (
            f"{DEVICE}::test_equals_brute_force",
            f"{DEVICE}::test_structures_of_every_kind_share_a_batch",
        ),
    ),
    Bug(
        "on a device, the bins of a structure touch those of the next",
        "mlip/device_neighbors.py",
        "+ 1 + 2 * fine).long()",
        "+ 1).long()",
        (f"{DEVICE}::test_structures_of_every_kind_share_a_batch[1.0]",),
    ),
    Bug(
        "on a device, the last part of many pairs is never looked at",
        "mlip/device_neighbors.py",
        "{*cuts, *",
        "{0, *",
        (f"{DEVICE}::test_little_memory_and_wide_bins_change_nothing",),
    ),
    Bug(
        "the number of atoms is left to torch-geometric",
        "mlip/graph.py",
        "Data(num_nodes=self.atomic_numbers.shape[0], **values)",
        "Data(**values)",
        (f"{GRAPH}::test_torch_geometric_batches_like_we_do",),
    ),
)

# -- energies ------------------------------------------------------------------------------------

ENERGIES = (
    Bug(
        "every pair is counted twice",
        "mlip/models/pair.py",
        "_per_atom(0.5 * pair, geometry)",
        "_per_atom(pair, geometry)",
        ("tests/unit/test_pair.py::test_lennard_jones_dimer[3.3674]",),
    ),
    Bug(
        "energy is the mean over atoms",
        POTENTIAL,
        "index_add(0, graph.batch, node_energy)",
        "index_add(0, graph.batch, node_energy) / graph.num_atoms",
        (f"{SYMMETRY}::test_supercell[facet-211]",),
    ),
    Bug(
        "a lone atom keeps the network's energy",
        POTENTIAL,
        "energy = output.energy[:n] - isolated",
        "energy = output.energy[:n]",
        (f"{LIMITS}::test_an_isolated_atom_has_its_reference_energy[facet-6]",),
    ),
    Bug(
        "reference energies are cast with the weights",
        POTENTIAL,
        "        self.e0 = e0.to(self.e0.device)\n",
        "",
        (f"{PRECISION}::test_energies_stay_double_whatever_the_model[facet]",),
    ),
    Bug(
        "reference energies are added in the precision of the weights",
        POTENTIAL,
        "node_energy = interaction.double() + e0",
        "node_energy = (interaction + e0.to(interaction.dtype)).double()",
        (f"{PRECISION}::test_energies_stay_double_whatever_the_model[facet]",),
    ),
    Bug(
        "positions are cast before their difference is taken",
        POTENTIAL,
        "edge_vectors(graph, positions, cell).to(self.dtype)",
        "edge_vectors(graph, positions.to(self.dtype), cell.to(self.dtype))",
        (f"{SYMMETRY}::test_translation_far_away_in_float32[facet-10000.0]",),
    ),
)

# -- the architecture ----------------------------------------------------------------------------

NETWORK = (
    Bug(
        "the radial basis has no envelope",
        "mlip/models/radial.py",
        "radial * (envelope * (0.5 * self.cutoff / r))[:, None]",
        "radial * (0.5 * self.cutoff / r)[:, None]",
        (f"{SMOOTHNESS}::test_an_atom_crosses_the_cutoff[facet-first neighbour]",),
    ),
    Bug(
        "the pair potential is cut off hard",
        "mlip/models/pair.py",
        "(s6 * s6 - s6) * polynomial_envelope(r / self.cutoff, 6)",
        "(s6 * s6 - s6)",
        (f"{CONSERVATION}::test_energy_error_is_second_order_in_the_time_step[2.6]",),
    ),
    Bug(
        "messages are divided by the mean degree of the batch",
        FACET,
        "edges.radial, self.norm * self.radial)",
        "edges.radial, (1 + len(edges.source) / edges.num_nodes) ** -0.7 * self.radial)",
        (f"{SYMMETRY}::test_batch_equals_single[facet]",),
    ),
    Bug(
        "an atom gets the species of the atom before it",
        "mlip/models/embedding.py",
        "self.index[geometry.atomic_numbers]",
        "self.index[geometry.atomic_numbers.roll(1)]",
        (f"{SYMMETRY}::test_permutation[facet-molecule]",),
    ),
    Bug(
        "one spherical harmonic is 0.1 % too large",
        "mlip/models/harmonics.py",
        "[s3 * y, s3 * z, s3 * x]",
        "[s3 * y, s3 * z, 1.001 * s3 * x]",
        (f"{SYMMETRY}::test_the_declared_symmetry_is_the_one_it_has[facet-molecule-rotation]",),
    ),
    Bug(
        "the sphere grid is too coarse for its product",
        FACET,
        "(3 * top + 2) // 2, 3 * top + 1",
        "(2 * top + 2) // 2, 3 * top + 1",
        (f"{SYMMETRY}::test_the_declared_symmetry_is_the_one_it_has[facet-molecule-rotation]",),
    ),
    Bug(
        "directions forget that distances depend on positions",
        "mlip/models/edges.py",
        "unit = geometry.edge_vectors / r[:, None]",
        "unit = geometry.edge_vectors / r[:, None].detach()",
        (f"{DERIVATIVES}::test_forces[facet-bulk]",),
    ),
    Bug(
        "each degree is divided by its own root mean square",
        FACET,
        "inverse = torch.rsqrt(1.0 + packed.square() @ shares)\n"
        "        return packed * inverse[:, None] * torch.cat(list(self.scales))[index]",
        "sizes = [(2 * d + 1) * c for d, c in enumerate(self.channels)]\n"
        "        parts = packed.split(sizes, 1)\n"
        "        parts = [v / (1e-6 + v.square().mean(1, True)).sqrt() for v in parts]\n"
        "        return torch.cat(parts, dim=1) * torch.cat(list(self.scales))[index]",
        (f"{LIMITS}::test_force_constants_of_a_perfect_crystal_do_not_depend_on_the_step[facet]",),
    ),
    Bug(
        "the neutral state has an embedding of its own",
        "mlip/models/embedding.py",
        "            - self.charge.weight[MAX_CHARGE]\n",
        "",
        (f"{LIMITS}::test_charge_and_spin_are_exactly_neutral_for_the_reference_state",),
    ),
)

# -- data and training ---------------------------------------------------------------------------

TRAINING = (
    Bug(
        "missing labels are masked by multiplication",
        "mlip/training/loss.py",
        "residual.where(known, 0.0)",
        "residual * known",
        (f"{LOSS}::test_half_labelled_batches_have_finite_gradients_equal_to_the_labelled_half",),
    ),
    Bug(
        "missing labels count as errors of zero",
        "mlip/training/loss.py",
        "known.sum().to(loss.dtype)",
        "loss.new_tensor(float(loss.numel()))",
        (f"{LOSS}::test_half_labelled_batches_have_finite_gradients_equal_to_the_labelled_half",),
    ),
    Bug(
        "a prediction that is NaN counts as a missing label",
        "mlip/training/loss.py",
        "known = ~torch.isnan(label)",
        "known = ~torch.isnan(residual)",
        (f"{LOSS}::test_a_nan_prediction_is_not_taken_for_a_missing_label",),
    ),
    Bug(
        "errors are means of the means of batches",
        "mlip/evaluate.py",
        "[known.abs().sum(1), known.square().sum(1), labelled.flatten(1).sum(1)]",
        "[known.abs().mean(1), known.square().mean(1), labelled.flatten(1).any(1)]",
        (f"{LOSS}::test_errors_do_not_depend_on_the_batch_size",),
    ),
    Bug(
        "the last, smaller batch is dropped",
        "mlip/data/plan.py",
        "return np.append(np.arange(0, n, batch_size or max(n, 1)), n)",
        "return np.arange(0, n + 1, batch_size or max(n, 1))",
        (f"{DATA}::test_every_structure_once_per_epoch_whatever_the_workers",),
    ),
    Bug(
        "the last structures of a file are not evaluated",
        "mlip/evaluate.py",
        "    if waiting:\n",
        "    if size >= max_atoms:\n",
        (f"{LOSS}::test_a_stream_of_structures_is_batched_whole_and_in_order",),
    ),
    Bug(
        "frames of one material are split at random",
        "mlip/data/prepare.py",
        'pool.store.column("group")[pool.rows]',
        "pool.rows",
        (f"{DATA}::test_frames_of_one_material_stay_together",),
    ),
    Bug(
        "constraints zero the force labels",
        "mlip/graph.py",
        "_shaped(results[name], shape, name)",
        '_shaped(atoms.get_forces() if name == "forces" else results[name], shape, name)',
        (f"{GRAPH}::test_missing_labels_are_nan_and_present_ones_survive_constraints",),
    ),
    Bug(
        "augmentation leaves the force labels behind",
        "mlip/symmetry.py",
        "forces=turn(graph.forces)",
        "forces=graph.forces",
        (f"{LOSS}::test_augmentation_turns_labels_with_the_structure",),
    ),
    Bug(
        "the average of weights takes the wrong share",
        "mlip/training/callbacks.py",
        "else 1.0 - min(self.decay, (1.0 + n) / (10.0 + n))",
        "else min(self.decay, (1.0 + n) / (10.0 + n))",
        ("tests/unit/training/test_steps.py::test_averaged_weights_are_the_average",),
    ),
    Bug(
        "the latent is told the rotation backwards",
        "mlip/training/objectives.py",
        "relative = (second @ first.transpose(1, 2))",
        "relative = (first @ second.transpose(1, 2))",
        (OBJECTIVES + "::test_a_latent_that_turns_is_predicted_by_turning_it",),
    ),
    Bug(
        "the target of the latent carries a gradient",
        "mlip/training/objectives.py",
        "torch.set_grad_enabled(not self.stop_gradient)",
        "torch.set_grad_enabled(True)",
        (OBJECTIVES + "::test_where_the_gradient_goes",),
    ),
    Bug(
        "a model without symmetry is validated in the orientation of its data",
        "mlip/training/module.py",
        "turned, as_if = rotated(batch, q), rotated",
        "turned, as_if = batch, rotated",
        ("tests/unit/training/test_validation.py::test_orientation_is_no_shortcut",),
    ),
    Bug(
        "several rotations of a validation structure are one",
        "mlip/training/module.py",
        "        for number in range(self.rotations):\n",
        "        for number in range(1):\n",
        ("tests/unit/training/test_validation.py::test_several_rotations_of_each_structure",),
    ),
    Bug(
        "a gradient that is not finite reaches the weights",
        "mlip/training/module.py",
        "        optimizer.zero_grad(set_to_none=True)\n",
        "",
        ("tests/unit/training/test_steps.py::test_a_step_that_is_not_finite_is_skipped",),
    ),
)

# -- other architectures, rotations, objectives, comparisons --------------------------------------

EQUIVARIANCE = (
    Bug(
        "features and messages change places in a coupling",
        FACET,
        "c = torch.tensor(coupling(l1, l2, l3)).permute(1, 2, 0)",
        "c = torch.tensor(coupling(l1, l2, l3)).permute(1, 0, 2)",
        (f"{SYMMETRY}::test_the_declared_symmetry_is_the_one_it_has[facet-L3-molecule-rotation]",),
    ),
    Bug(
        "a path of odd parity is let through",
        NEQUIP,
        '"natural": [(-1) ** degree]',
        '"natural": [1]',
        (
            f"{SYMMETRY}::test_the_declared_symmetry_is_the_one_it_has[nequip-L3-molecule-rotoreflection]",
        ),
    ),
    Bug(
        "odd scalars pass through an even function",
        NEQUIP,
        "TANH_GAIN * torch.tanh(value)",
        "TANH_GAIN * torch.tanh(value).abs()",
        ("tests/unit/test_nequip.py::test_gate_is_e3nns[4x0e+3x0o+2x1e+3x1o]",),
    ),
    Bug(
        "couplings are normalised by the neighbours' degree",
        NEQUIP,
        'device="cpu") * (2 * l3 + 1) ** 0.5',
        'device="cpu") * (2 * l1 + 1) ** 0.5',
        ("tests/unit/test_nequip.py::test_convolution_is_e3nns_tensor_product[natural]",),
    ),
    Bug(
        "gates pass a second nonlinearity",
        NEQUIP,
        "value * gate for value, gate",
        "value * torch.sigmoid(gate) for value, gate",
        ("tests/unit/test_nequip.py::test_gate_is_e3nns[5x0e+3x1o+2x2e]",),
    ),
)

ATTENDING = (
    Bug(
        "attention weights have no envelope",
        ATTENTION,
        "near = envelope[:, None] * torch.exp",
        "near = torch.exp",
        (
            f"{SMOOTHNESS}::test_an_atom_crosses_the_cutoff[transip-first neighbour]",
            f"{SMOOTHNESS}::test_an_atom_crosses_the_cutoff_of_a_crowded_site[transip]",
        ),
    ),
    Bug(
        "there is no null key",
        ATTENTION,
        "total = (itself + torch.exp(null - shift))",
        "total = itself",
        (f"{TRANSIP}::test_neighbour_attention_is_what_its_formula_says",),
    ),
    Bug(
        "values are not turned back at the centre",
        ATTENTION,
        "self.out(_turn(torch.cat(out), cos, -sin).flatten(1))",
        "self.out(torch.cat(out).flatten(1))",
        (f"{TRANSIP}::test_packed_attention_is_dense_attention[whole-phases]",),
    ),
    Bug(
        "channels that a phase turns are filtered each for itself",
        ATTENTION,
        "filters.repeat(1, 1, 2)",
        "filters.repeat_interleave(2, 2)",
        (f"{TRANSIP}::test_packed_attention_is_dense_attention[whole-distances]",),
    ),
    Bug(
        "an atom sees its distance from itself",
        ATTENTION,
        "u[:, None]) * ~own[:, None]",
        "u[:, None])",
        (f"{TRANSIP}::test_packed_attention_is_dense_attention[whole-distances]",),
    ),
    Bug(
        "keys are turned against queries",
        ATTENTION,
        "(query * _turn(key, cos, sin))",
        "(query * _turn(key, cos, -sin))",
        (f"{TRANSIP}::test_neighbour_attention_is_what_its_formula_says",),
    ),
    Bug(
        "packed molecules are cut one atom late",
        ATTENTION,
        "groups = [(count, size) for count, size in pairs if size]",
        "groups = [(1, count * size) for count, size in pairs if size]",
        (
            f"{TRANSIP}::test_packed_attention_is_dense_attention[whole-phases]",
            f"{SYMMETRY}::test_batch_equals_single[transip-global]",
        ),
    ),
    Bug(
        "all of attention is kept for the backward pass",
        ATTENTION,
        "if k < KEPT else recomputed(_mixed, *arguments)",
        "if k < KEPT else _mixed(*arguments)",
        (f"{TRANSIP}::test_training_keeps_the_arguments_of_neighbourhoods",),
    ),
    Bug(
        "weights beyond the limit are kept for the backward pass",
        ATTENTION,
        "whole.append(room >= 0)",
        "whole.append(True)",
        (f"{TRANSIP}::test_training_keeps_no_more_weights_than_it_may",),
    ),
    Bug(
        "derivatives of a recomputed function stop at copies of its arguments",
        "mlip/models/recompute.py",
        "if not again:",
        "if True:",
        (
            "tests/unit/test_recompute.py::test_every_derivative_is_that_of_the_function",
            f"{TRANSIP}::test_pieces_of_neighbourhoods_change_no_force_and_no_gradient",
        ),
    ),
    Bug(
        "pieces of one molecule see only the keys of their piece",
        ATTENTION,
        "recomputed(_attention_at, part, key, value, x, at, *shared)",
        "recomputed(_attention_at, part, *(y[:, :, : x.shape[1]] for y in (key, value)), x, x, "
        "*shared)",
        (f"{TRANSIP}::test_packed_attention_is_dense_attention[rows-phases]",),
    ),
    Bug(
        "exponentials are not shifted",
        ATTENTION,
        "shift = torch.maximum(own, null).detach()",
        "shift = torch.zeros_like(own)",
        (f"{TRANSIP}::test_weights_do_not_overflow",),
    ),
    Bug(
        "exponentials are shifted as if there were no envelope",
        ATTENTION,
        "logits.detach() + envelope.detach().log()[:, None]",
        "logits.detach()",
        (f"{TRANSIP}::test_a_dominant_neighbour_at_the_cutoff_has_finite_second_derivatives",),
    ),
    Bug(
        "the envelope is summed as printed in its paper",
        "mlip/models/radial.py",
        "torch.where(x < 1, (1 - x) ** 3 * total, 0.0)",
        "torch.where(x < 1, 1 - x**p * ((p + 1) * (p + 2) / 2 - p * x * (p + 2 - x * (p + 1) / 2)),"
        " 0.0)",
        (
            "tests/unit/test_radial.py::"
            "test_the_envelope_is_its_papers_formula_and_ends_as_well_in_single_precision",
        ),
    ),
    Bug(
        "atoms leave in the order of their molecules' sizes",
        "mlip/models/transip.py",
        "h = h[context.inverse]",
        "h = h[:]",
        (f"{SYMMETRY}::test_batch_equals_single[transip-global]",),
    ),
    Bug(
        "molecules are centred after the cast",
        ATTENTION,
        "            positions\n            - mean_of_graphs(positions,",
        "            positions.to(frequencies.dtype)\n            - mean_of_graphs(positions,",
        (f"{TRANSIP}::test_precision_does_not_depend_on_the_origin",),
    ),
    Bug(
        "direct forces have a net force",
        "mlip/models/transip.py",
        "forces = raw - net[geometry.batch]",
        "forces = raw",
        (f"{TRANSIP}::test_direct_forces_say_that_they_are_no_gradient[transip-global-direct]",),
    ),
    Bug(
        "pairs push each other differently",
        "mlip/models/transip.py",
        "* a[context.source] * a[context.centre]",
        "* a[context.source]",
        (f"{TRANSIP}::test_direct_forces_say_that_they_are_no_gradient[transip-direct]",),
    ),
)

TURNING = (
    Bug(
        "a frame is missing",
        "mlip/models/frame_averaging.py",
        "torch.tensor(signs), persistent=False)",
        "torch.tensor(signs[1:]), persistent=False)",
        (f"{FRAMES}::test_molecules_are_exact",),
    ),
    Bug(
        "an axis has the wrong sign",
        "mlip/models/frame_averaging.py",
        "axes[:, :, 2:] * handed[:, None, None]",
        "axes[:, :, 2:] * handed.abs()[:, None, None]",
        (f"{FRAMES}::test_axes_are_a_right_handed_eigensystem",),
    ),
    Bug(
        "frames are held fixed in the derivative",
        "mlip/models/frame_averaging.py",
        "axes = principal_axes(self.tensor(geometry))",
        "axes = principal_axes(self.tensor(geometry)).detach()",
        (f"{FRAMES}::test_forces_and_virial_are_derivatives[edges-ethanol]",),
    ),
    Bug(
        "direct forces stay in the frame",
        "mlip/models/frame_averaging.py",
        'torch.einsum("nxa,na->nx"',
        'torch.einsum("nax,na->nx"',
        (f"{FRAMES}::test_a_direct_head_is_turned_back",),
    ),
    Bug(
        "a group lacks a rotation",
        ROTATIONS,
        "    return torch.stack(group)\n",
        "    return torch.stack(group[:-1] or group)\n",
        (
            f"{GROUPS}::test_a_group_is_closed_and_proper",
            f"{GROUPS}::test_the_average_is_equivariant_under_its_group",
        ),
    ),
    Bug(
        "forces are averaged without turning them back",
        ROTATIONS,
        'forces += torch.einsum("kyx,kny->nx", some, out.forces.view(k, n, 3))',
        "forces += out.forces.view(k, n, 3).sum(0)",
        (
            f"{GROUPS}::test_the_average_is_equivariant_under_its_group",
            f"{CALCULATOR}::test_averaged_forces_and_stress_are_derivatives",
        ),
    ),
    Bug(
        "stress is turned back the wrong way",
        ROTATIONS,
        'stress += torch.einsum("kyx,kbyz,kzw->bxw"',
        'stress += torch.einsum("kxy,kbyz,kwz->bxw"',
        (f"{CALCULATOR}::test_averaged_forces_and_stress_are_derivatives",),
    ),
    Bug(
        "random rotations include reflections",
        ROTATIONS,
        "return q * torch.linalg.det(q)[:, None, None].sign()",
        "return q",
        (f"{GROUPS}::test_rotations_are_proper_and_cover_the_sphere",),
    ),
    Bug(
        "only the last part of an average is divided",
        ROTATIONS,
        "        energy += out.energy.view(k, b).sum(0)",
        "        energy = out.energy.view(k, b).sum(0) + 0 * energy",
        (f"{GROUPS}::test_many_rotations_in_parts_are_the_same_average",),
    ),
    Bug(
        "stress labels are not turned",
        ROTATIONS,
        "stress=q @ graph.stress @ q.transpose(1, 2)",
        "stress=graph.stress",
        (f"{LOSS}::test_augmentation_turns_labels_with_the_structure",),
    ),
    Bug(
        "a calculator ignores its rotations",
        "mlip/calculator.py",
        "        if self.rotations > 1:\n            return group",
        "        if self.rotations > 60:\n            return group",
        (f"{CALCULATOR}::test_averaged_forces_and_stress_are_derivatives",),
    ),
)

TEACHING = (
    Bug(
        "the latent is that of the structure before it was turned",
        OBJECTIVE,
        "prediction = potential(seen)\n        sums",
        "prediction = potential(graph)\n        sums",
        (OBJECTIVES + "::test_a_latent_that_turns_is_predicted_by_turning_it",),
    ),
    Bug(
        "the latent term has its full weight from the start",
        OBJECTIVE,
        "self.weight * ramp * latent",
        "self.weight * latent",
        (OBJECTIVES + "::test_weight_and_warm_up",),
    ),
    Bug(
        "augmentation shows the structure as it is",
        OBJECTIVE,
        "return rotated(graph, random_rotations(graph.num_graphs))",
        "return graph",
        (OBJECTIVES + "::test_rotations_change_what_is_seen_and_not_an_invariant_loss",),
    ),
    Bug(
        "the error of the latent is not relative to its variance",
        OBJECTIVE,
        "latent.detach() / variance.clamp(min=1e-12)",
        "latent.detach()",
        (OBJECTIVES + "::test_a_collapsed_latent_shows",),
    ),
)

COMPARING = (
    Bug(
        "runs on different data are compared in silence",
        "mlip/report/compare.py",
        "        if len(groups) > 1:\n",
        "        if len(groups) > 26:\n",
        (COMPARE + "::test_unequal_data_are_said[data]",),
    ),
    Bug(
        "validation errors stand in for test errors",
        "mlip/report/compare.py",
        'PARTS = ("test", "val")',
        'PARTS = ("val", "test")',
        (COMPARE + "::test_one_table_one_figure_one_file",),
    ),
)

SEVERAL = (
    Bug(
        "every structure gets the reference energies of the first head",
        POTENTIAL,
        "self.e0[graph.head[graph.batch], graph.atomic_numbers]",
        "self.e0[0, graph.atomic_numbers]",
        (f"{LIMITS}::test_each_level_of_theory_has_its_own_reference_energies",),
    ),
    Bug(
        "a lone atom of the second head keeps the network's energy once weights are final",
        POTENTIAL,
        "torch.full_like(known, head)",
        "torch.zeros_like(known)",
        (f"{HEADS}::test_an_isolated_atom_is_exactly_the_energy_of_its_head",),
    ),
    Bug(
        "all structures of a batch are read out by the head of the first",
        "mlip/models/readout.py",
        "head = geometry.head[geometry.batch]",
        "head = geometry.head[:1].expand(len(geometry.batch))",
        (f"{HEADS}::test_a_batch_of_both_heads_is_each_alone",),
    ),
    Bug(
        "reference energies are fitted to the structures of all heads",
        "mlip/data/prepare.py",
        "own = head_of == head",
        "own = head_of >= 0",
        (f"{SOURCES}::test_each_head_has_its_own_reference_energies",),
    ),
    Bug(
        "a held-out part is filled beyond its share",
        "mlip/data/splits.py",
        "(2 * before + sizes[left] <= 2 * room)",
        "(before <= room)",
        ("tests/unit/data/test_splits.py::test_filling_a_part_is_greedy",),
    ),
    Bug(
        "arrays of a split are written in the place of others",
        "mlip/training/split_file.py",
        'name = f"{len(arrays)}"',
        'name = f"{len(arrays) // 2}"',
        ("tests/unit/training/test_split_file.py::test_what_is_read_is_what_was_written",),
    ),
    Bug(
        "elements are counted for the structures of other shards",
        "mlip/data/store/reader.py",
        "counts[places] = found",
        "counts[: len(places)] = found",
        ("tests/unit/data/test_store.py::test_compositions_are_counted_over_shards",),
    ),
    Bug(
        "structures of a joined store carry the head of another source",
        "mlip/data/sources.py",
        '"head": np.array([piece.head]),',
        '"head": np.array([piece.source]),',
        (f"{SOURCES}::test_batches_know_source_head_and_weight",),
    ),
    Bug(
        "the same material of two sources is two",
        "mlip/data/prepare.py",
        'pool.store.column("group")[pool.rows] for',
        'pool.store.column("group")[pool.rows] + np.uint64(pool.number) for',
        (f"{SOURCES}::test_a_material_of_two_sources_is_on_one_side",),
    ),
    Bug(
        "validation structures come as often as training ones",
        "mlip/data/prepare.py",
        'indices) if part == "train" else None',
        "indices)",
        (f"{SOURCES}::test_sampling_is_how_often_a_structure_comes[2.0]",),
    ),
    Bug(
        "what has no stress is left out by a limit of stress",
        "mlip/data/filters.py",
        'return np.abs(store.column("stress")[rows]).max(axis=(1, 2)) > limit',
        'return ~(np.abs(store.column("stress")[rows]).max(axis=(1, 2)) <= limit)',
        (f"{SOURCES}::test_each_rule_takes_what_it_says",),
    ),
    Bug(
        "structures below the composition fit are left out as well",
        "mlip/data/filters.py",
        "residual > limit",
        "np.abs(residual) > limit",
        (f"{SOURCES}::test_each_rule_takes_what_it_says",),
    ),
    Bug(
        "a calculator speaks for the first head whatever it was asked",
        "mlip/calculator.py",
        "graph.with_head(head)",
        "graph",
        ("tests/unit/test_heads_in_use.py::test_a_calculator_speaks_for_its_head",),
    ),
    Bug(
        "the errors of a source are those of all",
        "mlip/evaluate.py",
        "(graph.source + 1).where(named, 0)",
        "torch.ones_like(graph.source)",
        (f"{LOSS}::test_errors_of_a_source_are_those_of_its_structures",),
    ),
)

KERNELS = (
    Bug(
        "every file of a store that is looked at stays open",
        "mlip/data/store/mapping.py",
        'if os.name == "posix":',
        'if os.name == "nt":',
        ("tests/unit/data/test_mapping.py::test_a_store_of_many_shards_needs_no_open_files",),
    ),
    Bug(
        "an index is found again by a path that it does not know",
        "mlip/data/store/cache.py",
        "file.absolute() if in_place else file.resolve()",
        "file.resolve()",
        ("tests/unit/data/test_in_place.py::test_a_link_that_goes_takes_no_other_path_with_it",),
    ),
    Bug(
        "whole vectors of channels are left out of the gradient of the harmonics",
        "mlip/models/kernels/neighbor_sum.c",
        "for (int c0 = 0; c0",
        "for (int c0 = LANES; c0",
        (f"{SUMS}::test_derivatives_are_those_of_all_messages[wide-dtype0]",),
    ),
    Bug(
        "a second tile of neighbours takes the radial functions of the first",
        "mlip/models/kernels/neighbor_sum.c",
        "radial_weights(edges, u_radial + e0 * PER_EDGE",
        "radial_weights(edges, u_radial + first[i] * PER_EDGE",
        (f"{SUMS}::test_derivatives_are_those_of_all_messages[middle-dtype0]",),
    ),
    Bug(
        "the exchanged argument of a second derivative is differentiated too",
        "mlip/models/kernels/fused_sum.py",
        "need and m != k for m, need",
        "need for m, need",
        (f"{FUSED}::test_sums_and_derivatives_are_those_of_all_messages[middle-dtype0]",),
    ),
    Bug(
        "only the last input of a layer moves the harmonics",
        "mlip/models/kernels/fused_source.py",
        "tl.load(to, e < edges) + tl.sum",
        "tl.sum",
        (f"{FUSED}::test_sums_and_derivatives_are_those_of_all_messages[middle-dtype0]",),
    ),
    Bug(
        "a library is loaded that others may have written",
        "mlip/models/kernels/compiler.py",
        "    _must_be_ours(library)\n",
        "",
        (f"{SUMS}::test_nothing_is_loaded_that_others_could_have_written[library]",),
    ),
    Bug(
        "each of several processes takes the mean over its own labels",
        "mlip/training/processes.py",
        "total * world / counts[k].clamp",
        "total / sums[name][1].clamp",
        ("tests/integration/test_processes.py::test_two_processes_make_the_steps_of_one",),
    ),
    Bug(
        "a cell filter takes the derivative of the exponential for its adjoint",
        "mlip/cell_filter.py",
        "x = self._log().T",
        "x = self._log()",
        ("tests/unit/test_cell_filter.py::test_forces_are_the_derivative_of_the_energy",),
    ),
)

# -- rows that stay in their files ---------------------------------------------------------------

IN_PLACE = (
    Bug(
        "rows in place are counted without those that were deleted",
        "mlip/data/readers/omol25.py",
        "int(self._ids[number])",
        "number + 1",
        (f"{INDEX}::test_rows_that_were_deleted_move_no_other",),
    ),
    Bug(
        "forces that a row in place does not have are zero",
        "mlip/data/store/originals.py",
        "np.full(shape, np.nan) if values is None",
        "np.zeros(shape) if values is None",
        (f"{INDEX}::test_rows_that_were_deleted_move_no_other",),
    ),
    Bug(
        "a forked worker reads through the environment of its parent",
        "mlip/data/readers/omol25.py",
        "self._process != os.getpid()",
        "self._process < 0",
        (f"{INDEX}::test_an_environment_is_of_one_process",),
    ),
    Bug(
        "a shard that was written to since it was indexed passes for the same",
        "mlip/data/store/originals.py",
        '"ends": "content", "mtime_ns": "time"}',
        '"ends": "content"}',
        (f"{INDEX}::test_a_shard_that_has_changed_or_gone",),
    ),
    Bug(
        "the largest force of a structure is that of a component",
        "mlip/data/store/summaries.py",
        "lambda f: (f**2).sum(axis=1)",
        "lambda f: (f**2).max(axis=1)",
        (f"{INDEX}::test_summaries_are_of_the_structures",),
    ),
)

# -- files in parts, by several processes ---------------------------------------------------------

DIVIDING = (
    Bug(
        "every part of an extxyz file counts its frames from zero",
        "mlip/data/readers/extxyz.py",
        "_frames(path, stream, first, end)",
        "_frames(path, stream, 0, end)",
        (
            f"{PARTS}::test_whatever_is_wrong_parts_say_what_the_whole_says",
            f"{DIVIDED}::test_a_fault_is_named_as_in_a_whole_file[a column too few]",
        ),
    ),
    Bug(
        "the second line of a frame is counted as one of its atoms",
        "mlip/data/readers/extxyz_parts.py",
        "line += 1 + int(head)",
        "line += int(head)",
        (f"{PARTS}::test_parts_are_the_file",),
    ),
    Bug(
        "a part reads the first frame of the next one, too",
        "mlip/data/readers/extxyz.py",
        "stream.tell() < end",
        "stream.tell() <= end",
        (f"{PARTS}::test_parts_are_the_file",),
    ),
    Bug(
        "blank lines at the beginning of a file are a part without frames",
        "mlip/data/readers/extxyz_parts.py",
        ">= size and frame > first",
        ">= size",
        (f"{PARTS}::test_blank_lines_make_no_part_of_their_own",),
    ),
    Bug(
        "every shard of a part says again what was left out before it",
        "mlip/data/store/jobs.py",
        "noticed if last else Noticed()",
        "noticed",
        (f"{DIVIDED}::test_parts_over_hosts",),
    ),
    Bug(
        "a conversion that goes on counts what is left of its frames",
        "mlip/data/store/jobs.py",
        'return shard["structures"] + len(shard["refused"])',
        'return shard["structures"]',
        (f"{SKIPPED}::test_going_on_after_a_kill",),
    ),
    Bug(
        "frames behind one that is skipped have its number",
        "mlip/data/store/jobs.py",
        "first += len(frames)",
        "first += len(frames) * isinstance(frames, Block)",
        (f"{SKIPPED}::test_what_is_left_is_the_file_without_them",),
    ),
    Bug(
        "a structure goes with the one that atoms on one another are found in",
        "mlip/data/readers/frames.py",
        "atoms = np.repeat(stays, self.counts)",
        "atoms = np.repeat(np.roll(stays, 1), self.counts)",
        (f"{SKIPPED}::test_what_is_left_is_the_file_without_them",),
    ),
    Bug(
        "what a skipped frame leaves out is counted",
        "mlip/data/readers/canonical.py",
        "self.left_out.clear()\n        self.left_out.update(left_out)",
        "pass",
        (f"{SKIPPED}::test_what_a_skipped_frame_would_leave_out_is_not_counted",),
    ),
    Bug(
        "the key of a skipped frame counts",
        "mlip/data/readers/blocks.py",
        "canonical.forget_since(before)",
        "pass",
        (f"{SKIPPED}::test_the_key_of_a_frame_that_is_skipped_counts_for_nothing",),
    ),
    Bug(
        "two levels of theory are skipped as bad frames",
        "mlip/data/readers/canonical.py",
        "except OtherKeyError:\n            raise\n        ",
        "",
        (f"{SKIPPED}::test_another_key_is_never_skipped",),
    ),
    Bug(
        "frames that a split leaves out are those that readers refuse",
        "mlip/data/partition.py",
        'tuple(usable[["file", "frame"]][row]) != (number, index)',
        "isinstance(inspected.meaning, DataError)",
        (f"{SKIPPED}::test_a_split_keeps_frames_where_they_belong",),
    ),
    Bug(
        "the key of a frame that the doctor could not use counts",
        "mlip/data/readers/__init__.py",
        "canonical.forget_since(before)",
        "pass",
        (f"{SKIPPED}::test_a_split_knows_two_levels_of_theory",),
    ),
    Bug(
        "skipped frames are named in the order in which they were found",
        "mlip/data/store/writer.py",
        'self._record["refused"].sort()',
        "pass",
        (f"{SKIPPED}::test_what_is_left_is_the_file_without_them",),
    ),
    Bug(
        "atoms at one point of a slab end a conversion",
        "mlip/data/store/overlaps.py",
        "faults[k] = str(error)",
        "raise",
        (f"{SKIPPED}::test_atoms_in_one_place",),
    ),
    Bug(
        "every rank counts the edges of all structures",
        "mlip/data/store/edges.py",
        "if writable else nullcontext()",
        "if not writable else nullcontext()",
        (f"{LOADER}::test_of_ranks_that_begin_together_one_counts_edges",),
    ),
    Bug(
        "any number of frames may be skipped",
        "mlip/data/store/build.py",
        "check_share(count, frames, ",
        "check_share(0, frames, ",
        (f"{SKIPPED}::test_one_in_a_thousand",),
    ),
    Bug(
        "what a given part shares is looked for among structures of its own source",
        "mlip/data/prepare.py",
        'for p, own in chosen["train"]\n                for some',
        'for p, own in chosen["train"] if p.number == pool.number\n                for some',
        (f"{SOURCES}::test_what_a_given_part_shares_with_any_training_structure_is_said",),
    ),
    Bug(
        "parts may have a label under different keys",
        "mlip/data/store/build.py",
        "before |= keys",
        "before |= {}",
        (f"{DIVIDED}::test_a_label_that_moves_to_another_key_between_two_parts",),
    ),
    Bug(
        "of several faults the one that is found first is named",
        "mlip/data/store/build.py",
        "first_failure(list(running))",
        "first_failure(list(done))",
        (f"{DIVIDED}::test_the_first_fault_of_a_file_is_named_whoever_is_faster",),
    ),
    Bug(
        "a conversion goes on with shards of files that were cut otherwise",
        "mlip/data/store/conversion.py",
        'saved.pop("plan", 1)',
        'saved.pop("plan", PLAN)',
        (
            f"{DIVIDED}::test_a_conversion_that_was_begun_when_files_were_cut_otherwise_is_not_gone"
            "_on_with",
        ),
    ),
    Bug(
        "edges are counted in the order in which workers are done",
        "mlip/data/processes.py",
        "waiting.popleft().result()",
        "waiting.pop().result()",
        (f"{LOADER}::test_the_number_of_processes_that_count_edges_changes_nothing[3-fork-7]",),
    ),
    Bug(
        "frames are numbered from the beginning of their stretch",
        "mlip/data/checkup/census.py",
        'rows["frame"] += before',
        'rows["frame"] += 0',
        (f"{DOCTORS}::{OTHER_KEY}",),
    ),
    Bug(
        "examples are numbered from the beginning of their stretch",
        "mlip/data/checkup/findings.py",
        "frame=self.frame + frames)",
        "frame=self.frame)",
        (f"{DOCTORS}::{OTHER_KEY}",),
    ),
    Bug(
        "compositions have the numbers that they have in their stretch",
        "mlip/data/checkup/census.py",
        'np.array(compositions)[rows["composition"]]',
        'rows["composition"]',
        (f"{DOCTORS}::{OTHER_KEY}",),
    ),
    Bug(
        "a stretch knows nothing of the keys of labels before it",
        "mlip/data/checkup/stretches.py",
        "look = _look_at(stretch, options, known)",
        "pass",
        (f"{DOCTORS}::{OTHER_KEY}",),
    ),
    Bug(
        "what lies behind the place where a file becomes unreadable is looked at",
        "mlip/data/checkup/stretches.py",
        "over = look.unread is not None",
        "over = False",
        (f"{DOCTORS}::test_damaged_files",),
    ),
    Bug(
        "a fault in the first material of a stretch comes after no material",
        "mlip/data/checkup/stretches.py",
        'piece.kind != "mptrj"',
        'piece.kind == "mptrj"',
        (f"{DOCTORS}::test_the_first_material_of_a_stretch_is_named_by_the_one_before",),
    ),
)

STEPPING = (
    Bug(
        "the optimiser multiplies in whatever precision training does",
        "mlip/training/muon.py",
        'with float32_products("highest"):',
        "if True:",
        (
            "tests/unit/training/test_run.py::test_matrix_products_are_as_asked_for_while_training_only",
        ),
    ),
    Bug(
        "tall matrices are orthogonalised as if they were wide",
        "mlip/training/muon.py",
        "wide = [x.T if x.shape[0] > x.shape[1] else x for x in matrices]",
        "wide = list(matrices)",
        ("tests/unit/training/test_muon.py::test_only_singular_values_change",),
    ),
    Bug(
        "squares are taken once too often",
        "mlip/training/muon.py",
        "for _ in range(STEPS - 1):",
        "for _ in range(STEPS):",
        ("tests/unit/training/test_muon.py::test_only_singular_values_change",),
    ),
    Bug(
        "steps are not as large as those of AdamW",
        "mlip/training/muon.py",
        "alpha=-lr * RMS * math.sqrt(max(matrix.shape))",
        "alpha=-lr",
        ("tests/unit/training/test_muon.py::test_steps_are_those_of_pytorch",),
    ),
    Bug(
        "the average forgets as fast at the end as at the beginning",
        "mlip/training/callbacks.py",
        "1.0 - min(self.decay, (1.0 + n) / (10.0 + n))",
        "1.0 - self.decay",
        ("tests/unit/training/test_steps.py::test_averaged_weights_are_the_average",),
    ),
    Bug(
        "there are as many pools of threads as numbers of parts",
        "mlip/models/kernels/neighbor_sum.py",
        "_pool(os.getpid(), torch.get_num_threads())",
        "_pool(os.getpid(), len(ranges))",
        ("tests/unit/test_kernels.py::test_batches_of_any_size_share_their_threads",),
    ),
    Bug(
        "the parts of all threads but the first are lost",
        "mlip/models/kernels/neighbor_sum.py",
        "into.add_(part)",
        "pass",
        ("tests/unit/test_kernels.py::test_threads_give_the_same",),
    ),
    Bug(
        "what an attempt took is held while its parts are predicted",
        "mlip/together.py",
        "        if len(waiting) == 1:\n",
        "        if len(waiting) > 1:\n            for one in waiting:\n"
        "                _answer(calculator, [one])\n            return\n"
        "        if len(waiting) == 1:\n",
        ("tests/unit/test_together.py::test_what_is_too_much_at_a_time_is_predicted_one_by_one",),
    ),
    Bug(
        "errors of symmetry are those of the last batch",
        "mlip/symmetry.py",
        "changes.add(potential, graph, reference, operations)",
        "changes.__init__(); changes.add(potential, graph, reference, operations)",
        ("tests/unit/test_symmetry.py::test_errors_are_those_of_all_batches_together",),
    ),
)

PLACES = (
    Bug(
        "results of a captured potential are written over by its next call",
        "mlip/models/captured.py",
        "*(x[:n].clone() for x in features)",
        "*(x[:n] for x in features)",
        (f"{CAPTURED}::test_results_stay_when_the_memory_is_used_again",),
    ),
    Bug(
        "other weights replay a capture",
        "mlip/models/captured.py",
        "key = (id(potential.frozen), stream_of(given[0].device), *sizes)",
        "key = sizes",
        (f"{CAPTURED}::test_other_weights_are_other_captures",),
    ),
    Bug(
        "a capture is made of the system it is compared with",
        "mlip/models/captured.py",
        "        memory = _Memory(potential, given, *sizes)\n",
        "        memory = _Memory(potential, given, *sizes)\n        memory.fill(given)\n",
        (f"{CAPTURED}::test_wrong_numbers_and_failures_are_refused",),
    ),
    Bug(
        "a new capture is given up for an old one",
        "mlip/models/captured.py",
        "        self._captures[key] = capture\n        self._captures.move_to_end(key)\n",
        "        self._captures[key] = capture\n",
        (f"{CAPTURED}::test_few_captures_are_kept_and_large_systems_are_not_captured",),
    ),
    Bug(
        "threads share the memory of a capture",
        "mlip/models/captured.py",
        "                with self._lock:\n                    return",
        "                if True:\n                    return",
        (f"{CAPTURED}::test_threads_wait_for_each_other",),
    ),
    Bug(
        "a captured function looks at values",
        "mlip/models/captured.py",
        "with tracing(), torch.enable_grad():",
        "with torch.enable_grad():",
        (f"{CAPTURED}::test_nothing_that_is_captured_asks_for_numbers[facet-charge]",),
    ),
    Bug(
        "a constant of a model stays on the CPU",
        FACET,
        "torch.tensor(shares, dtype=dtype, device=device)",
        "torch.tensor(shares, dtype=dtype)",
        (f"{ELSEWHERE}::test_predictions_and_gradients_of_weights",),
    ),
    Bug(
        "an accelerator is waited for between forward and backward",
        "mlip/training/module.py",
        "return lesson.loss\n",
        "return lesson.loss * float(bool(lesson.loss > -1))\n",
        (f"{ELSEWHERE}::test_a_whole_run_there_writes_the_potential_of_one_here",),
    ),
    Bug(
        "structures are picked out of a batch one by one",
        "mlip/evaluate.py",
        "+ errors.sum(0)",
        "+ errors[errors[:, 2] >= 0].sum(0)",
        (f"{ELSEWHERE}::test_a_whole_run_there_writes_the_potential_of_one_here",),
    ),
)

BUGS = (
    *MECHANICS,
    *LATTICE,
    *ENERGIES,
    *NETWORK,
    *TRAINING,
    *EQUIVARIANCE,
    *ATTENDING,
    *TURNING,
    *TEACHING,
    *COMPARING,
    *SEVERAL,
    *KERNELS,
    *IN_PLACE,
    *DIVIDING,
    *STEPPING,
    *PLACES,
)
