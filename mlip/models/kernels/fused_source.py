"""The Triton source of `fused_sum`: two kernels for the products of one input of a layer.

Loops over products, components and couplings are written out, so that sums stay in registers and
couplings become constants. Programs are one warp wide and work on `ROWS` edges times `WIDTH`
channels at a time: narrow inputs take more edges instead of leaving lanes idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from mlip.models.kernels.layout import Product


def write(
    rows: Sequence[Product],
    constants: Sequence[Tensor],
    harmonics: int,
    features: int,
    weights: int,
) -> str:
    """Return the two kernels of the products of one input, as Python.

    Args:
        rows: the products.
        constants: of each product its coupling (2l2+1, 2l3+1, 2l1+1).
        harmonics: H.
        features: F.
        weights: W.
    """
    return "\n".join([*HEAD, *_collect(rows, constants, harmonics, features, weights), "",
                      *_spread(rows, constants, harmonics, features, weights), ""])  # fmt: skip


HEAD = ("import triton", "import triton.language as tl", "", "")


def _collect(
    rows: Sequence[Product],
    constants: Sequence[Tensor],
    harmonics: int,
    features: int,
    weights: int,
) -> Iterator[str]:
    """A program sums over the neighbours of one atom, `ROWS` at a time, for `WIDTH` channels."""
    d1, channels = rows[0].dimensions[0], rows[0].channels
    yield from (
        "@triton.jit(do_not_specialize=['atoms'])",
        "def collect(out, h, y, w, first, source, atoms, ROWS: tl.constexpr, WIDTH: tl.constexpr):",
        "    i, atoms = tl.program_id(0).to(tl.int64), atoms.to(tl.int64)",
        "    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]",
        "    begin, end = tl.load(first + i), tl.load(first + i + 1)",
        *(
            f"    sum{p}_{m3} = tl.zeros((ROWS, WIDTH), out.dtype.element_ty)"
            for p, row in enumerate(rows)
            for m3 in range(row.dimensions[2])
        ),
        "    for e0 in range(begin, end, ROWS):",
        "        e = e0 + tl.arange(0, ROWS)[:, None]",
        "        there = e < end",
        f"        inside = there & (c < {channels})",
        "        j = tl.load(source + e, there, 0)",
    )
    yield from _indented(8, _read_edges(rows, harmonics))
    yield from _indented(8, _read_features(rows[0], features))
    for p, (row, constant) in enumerate(zip(rows, constants, strict=True)):
        yield f"        w_ = tl.load(w + e * {weights} + {row.at_weight} + c, inside, 0.0)"
        yield from (f"        x{m1} = w_ * h{m1}" for m1 in range(d1))
        for m3, m1, b in _matrix(row, constant):
            yield f"        sum{p}_{m3} += ({b}) * x{m1}"
    yield "    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)"
    for p, row in enumerate(rows):
        d3 = row.dimensions[2]
        yield f"    to = out + atoms * {row.at_output} + i * {d3 * row.stride} + {row.column} + c"
        for m3 in range(d3):
            total = f"tl.sum(sum{p}_{m3}, 0)"
            yield f"    tl.store(to + {m3 * row.stride}, {total}, c < {channels})"


def _spread(
    rows: Sequence[Product],
    constants: Sequence[Tensor],
    harmonics: int,
    features: int,
    weights: int,
) -> Iterator[str]:
    """A program takes `ROWS` edges and goes through all channels, so that it owns their gradients.

    What belongs to an atom is added up by all programs at once.
    """
    d1, channels = rows[0].dimensions[0], rows[0].channels
    used = _harmonics(rows)
    yield from (
        "@triton.jit(do_not_specialize=['atoms', 'edges'])",
        "def spread(d_h, d_y, d_w, g, h, y, w, source, centre, atoms, edges, WITH_H: tl.constexpr,",
        "           WITH_Y: tl.constexpr, WITH_W: tl.constexpr, ROWS: tl.constexpr,",
        "           WIDTH: tl.constexpr):",
        "    e = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
        "    there, atoms = e < edges, atoms.to(tl.int64)",
        "    i, j = tl.load(centre + e, there, 0), tl.load(source + e, there, 0)",
    )
    yield from _indented(4, _read_edges(rows, harmonics))
    yield from (f"    sum{k} = tl.zeros((ROWS, WIDTH), h.dtype.element_ty)" for k in used)
    yield f"    for c0 in range(0, {channels}, WIDTH):"
    body = [
        "c = c0 + tl.arange(0, WIDTH)[None, :]",
        f"inside = there & (c < {channels})",
        *_read_features(rows[0], features),
        *(f"to{m1} = tl.zeros((ROWS, WIDTH), h.dtype.element_ty)" for m1 in range(d1)),
    ]
    for row, constant in zip(rows, constants, strict=True):
        d3 = row.dimensions[2]
        body += [
            f"w_ = tl.load(w + e * {weights} + {row.at_weight} + c, inside, 0.0)",
            f"at = g + atoms * {row.at_output} + i * {d3 * row.stride} + {row.column} + c",
            *(f"g{m3} = tl.load(at + {m3 * row.stride}, inside, 0.0)" for m3 in range(d3)),
        ]
        begun: set[int] = set()
        for m3, m1, b in _matrix(row, constant):
            body.append(f"s{m1} {'+=' if m1 in begun else '='} ({b}) * g{m3}")
            begun.add(m1)
        over = " + ".join(f"h{m1} * s{m1}" for m1 in sorted(begun))
        body += [
            "if WITH_W:",
            f"    tl.store(d_w + e * {weights} + {row.at_weight} + c, {over}, inside)",
            "if WITH_H:",
            *(f"    to{m1} += w_ * s{m1}" for m1 in sorted(begun)),
            "if WITH_Y:",
            *(f"    x{m1} = w_ * h{m1}" for m1 in range(d1)),
        ]
        for m2, m3, m1, value in _terms(constant):
            body.append(f"    sum{row.at_harmonic + m2} += {value!r} * (g{m3} * x{m1})")
    body += [
        "if WITH_H:",
        f"    to = d_h + j * {features} + {rows[0].at_feature} + c",
        *(
            f"    tl.atomic_add(to + {m1 * channels}, to{m1}, inside, sem='relaxed')"
            for m1 in range(d1)
        ),
    ]
    yield from _indented(8, body)
    yield "    if WITH_Y:"  # the other inputs add theirs, one launch after another
    yield "        e = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)"
    for k in used:
        yield f"        to = d_y + e * {harmonics} + {k}"
        yield f"        tl.store(to, tl.load(to, e < edges) + tl.sum(sum{k}, 1), e < edges)"


def _read_edges(rows: Sequence[Product], harmonics: int) -> Iterator[str]:
    return (f"y{k} = tl.load(y + e * {harmonics} + {k}, there, 0.0)" for k in _harmonics(rows))


def _read_features(row: Product, features: int) -> Iterator[str]:
    for m1 in range(row.dimensions[0]):
        at = row.at_feature + m1 * row.channels
        yield f"h{m1} = tl.load(h + j * {features} + {at} + c, inside, 0.0)"


def _harmonics(rows: Sequence[Product]) -> list[int]:
    """Which harmonics the products use."""
    return sorted({row.at_harmonic + m2 for row in rows for m2 in range(row.dimensions[1])})


def _terms(constant: Tensor) -> Iterator[tuple[int, int, int, float]]:
    for m2, m3, m1 in constant.nonzero().tolist():
        yield m2, m3, m1, float(constant[m2, m3, m1])


def _matrix(row: Product, constant: Tensor) -> Iterator[tuple[int, int, str]]:
    """Entries of the coupling with the harmonics of an edge, (m3, m1), as expressions."""
    found: dict[tuple[int, int], list[str]] = {}
    for m2, m3, m1, value in _terms(constant):
        found.setdefault((m3, m1), []).append(f"{value!r} * y{row.at_harmonic + m2}")
    for (m3, m1), parts in sorted(found.items()):
        yield m3, m1, " + ".join(parts)


def _indented(spaces: int, lines: Iterable[str]) -> Iterator[str]:
    return (" " * spaces + line for line in lines)
