"""Loss landscapes: loss and scores along the line between two results, over the plane of three, and around one.

- Line: (1−α) A + α B, α from 0 to 1 (Goodfellow et al. 2015, arXiv:1412.6544). The barrier is the largest loss on it
  minus the mean of the losses at its ends (Ainsworth et al. 2023, arXiv:2209.04836).
- Plane: A + x û + y v̂, u = B − A, v = C − A without its part along u (Garipov et al. 2018, arXiv:1802.10026).
- Around: A + x d + y e, with random directions whose filters are as long as those of A (Li et al. 2018,
  arXiv:1712.09913): d_f = ‖A_f‖ n_f / ‖n_f‖, n normal, a filter being an output row of a tensor. Those of
  tensors with one dimension (biases, norms) are 0.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from zlib import crc32

import torch
from torch import Tensor

from graftwork.arithmetic.landscapes.files import Line, Surface, Values
from graftwork.errors import WeightsError
from graftwork.training.display import SILENT, Display

Weights = Mapping[str, Tensor]
Measure = Callable[[Weights], Values]
"""Of the tensors of a result, the loss (`loss`) and scores by name."""


def line(
    a: Weights,
    b: Weights,
    measure: Measure,
    *,
    others: Mapping[str, Weights] | None = None,
    points: int = 25,
    names: tuple[str, str] = ("A", "B"),
    display: Display = SILENT,
) -> Line:
    """Measure along the line between two results.

    Args:
        a, b: the results.
        measure: see there.
        others: further ends by name, such as `b` after alignment; there is a curve for each.
        points: number of points, ends included.
        names: of the results.
        display: where a bar shows how far it is.

    Raises:
        WeightsError: the results have not the same tensors; or there are fewer than 2 points.
    """
    _require_points(points)
    ends = {"as they are": b, **(others or {})}
    alphas = [place / (points - 1) for place in range(points)]
    with display.bar("line", 1 + len(ends) * (points - 1), "points") as bar:
        first = measure(a)
        bar.advance(1)
        curves = {}
        for name, end in ends.items():
            found = [first]
            for alpha in alphas[1:]:
                found.append(measure(interpolate(a, end, alpha)))
                bar.advance(1)
            curves[name] = tuple(found)
    return Line(names=names, alphas=tuple(alphas), curves=curves)


def plane(
    a: Weights,
    b: Weights,
    c: Weights,
    measure: Measure,
    *,
    points: int = 11,
    margin: float = 0.2,
    names: tuple[str, str, str] = ("A", "B", "C"),
    display: Display = SILENT,
) -> Surface:
    """Measure over the plane of three results, on a grid.

    Args:
        a, b, c: the results.
        measure: see there.
        points: number of points along each side.
        margin: how far the grid goes beyond the results, relative to their extent.
        names: of the results.
        display: where a bar shows how far it is.

    Raises:
        WeightsError: the results have not the same tensors, or are on one line; or there are fewer than 2 points.
    """
    _require_points(points)
    u, v = _difference(b, a), _difference(c, a)
    width = _dot(u, u) ** 0.5
    along = _dot(u, v) / width if width else 0.0
    v = {name: v[name] - along / width * u[name] for name in v} if width else v
    height = _dot(v, v) ** 0.5
    if not width or height <= 1e-6 * max(width, abs(along)):
        raise WeightsError(
            f"{', '.join(names)} are on one line, so that they have no plane", expected="three different results"
        )
    marks = {names[0]: (0.0, 0.0), names[1]: (width, 0.0), names[2]: (along, height)}
    x, y = (_spaced([mark[axis] for mark in marks.values()], points, margin) for axis in (0, 1))
    units = {"x": {name: own / width for name, own in u.items()}, "y": {name: own / height for name, own in v.items()}}
    values = _grid(a, units, x, y, measure, display)
    axes = (f"distance from {names[0]} towards {names[1]}", f"distance towards {names[2]}")
    settings = {"points": points, "margin": margin}
    return Surface(kind="plane", axes=axes, x=x, y=y, values=values, marks=marks, settings=settings)


def around(
    a: Weights,
    measure: Measure,
    *,
    points: int = 11,
    span: float = 1.0,
    seed: int = 0,
    columns: Collection[str] = (),
    name: str = "A",
    display: Display = SILENT,
) -> Surface:
    """Measure around a result, in two random directions whose filters are as long as the result's.

    Args:
        a: the result.
        measure: see there.
        points: number of points along each side; an odd number has the result in the middle.
        span: how far the grid goes in each direction; at 1, random filters of the result's own length are added.
        seed: of the directions, which are the same on every machine with the same version of torch.
        columns: names of tensors whose filters are columns (GPT-2's weights are (in, out)).
        name: of the result.
        display: where a bar shows how far it is.

    Raises:
        WeightsError: there are fewer than 2 points, or the grid goes nowhere.
    """
    _require_points(points)
    if not 0.0 < span < math.inf:
        raise WeightsError(f"a span of {span:g} makes no landscape", expected="a number above 0", change="--span")
    directions = {axis: direction(a, seed=seed, which=axis, columns=columns) for axis in ("x", "y")}
    side = tuple(span * (2 * place / (points - 1) - 1) for place in range(points))
    values = _grid(a, directions, side, side, measure, display)
    settings = {"points": points, "span": span, "seed": seed}
    stored = {f"{axis}.{own}": tensor for axis, found in directions.items() for own, tensor in found.items()}
    axes = ("first random direction", "second random direction")
    return Surface(
        kind="around",
        axes=axes,
        x=side,
        y=side,
        values=values,
        marks={name: (0.0, 0.0)},
        settings=settings,
        directions=stored,
    )


def direction(a: Weights, *, seed: int, which: str, columns: Collection[str] = ()) -> dict[str, Tensor]:
    """A random direction with filters as long as those of a result. Tensors of whole numbers have none.

    Args:
        which: several directions of one seed have different names.
        columns: names of tensors whose filters are columns.
    """
    found = {}
    for name, own in a.items():
        if not own.is_floating_point():
            continue
        if own.dim() < 2:
            found[name] = torch.zeros_like(own)
            continue
        generator = torch.Generator().manual_seed(crc32(f"{seed} {which} {name}".encode()))
        drawn = torch.randn(own.shape, generator=generator).to(own)
        dims = [dim for dim in range(own.dim()) if dim != int(name in columns)]
        length, of_drawn = (torch.linalg.vector_norm(tensor, dim=dims, keepdim=True) for tensor in (own, drawn))
        found[name] = drawn * (length / of_drawn)
    return found


def interpolate(a: Weights, b: Weights, alpha: float) -> dict[str, Tensor]:
    """(1−α) a + α b, computed in float32 or wider; a's whole numbers (counters).

    Raises:
        WeightsError: they have not the same tensors.
    """
    _require_alike(a, b)
    return {
        name: ((1 - alpha) * wide(own) + alpha * wide(b[name])).to(own.dtype) if own.is_floating_point() else own
        for name, own in a.items()
    }


def wide(tensor: Tensor) -> Tensor:
    """In float32, if it is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _difference(b: Weights, a: Weights) -> dict[str, Tensor]:
    """b − a of floating-point tensors, in float32 or wider.

    Raises:
        WeightsError: they have not the same tensors.
    """
    _require_alike(a, b)
    return {name: wide(b[name]) - wide(own) for name, own in a.items() if own.is_floating_point()}


def _require_alike(a: Weights, b: Weights) -> None:
    for name in [*a, *b]:
        shapes = [tuple(own[name].shape) if name in own else None for own in (a, b)]
        if shapes[0] != shapes[1]:
            first, second = ("missing" if shape is None else f"of shape {shape}" for shape in shapes)
            raise WeightsError(
                f"tensor {name!r} is {first} in one result and {second} in the other",
                expected="results with the same tensors",
            )


def _dot(u: Weights, v: Weights) -> float:
    return sum(float((u[name].double() * v[name].double()).sum()) for name in u)


def _spaced(found: Sequence[float], points: int, margin: float) -> tuple[float, ...]:
    """Places from below the smallest to above the largest."""
    extent = max(found) - min(found)
    low, high = min(found) - margin * extent, max(found) + margin * extent
    return tuple(low + (high - low) * place / (points - 1) for place in range(points))


def _grid(
    a: Weights,
    directions: Mapping[str, Weights],
    x: Sequence[float],
    y: Sequence[float],
    measure: Measure,
    display: Display,
) -> tuple[tuple[Values, ...], ...]:
    """What is measured at each place, row by row from the lowest y on."""
    rows = []
    with display.bar("grid", len(x) * len(y), "points") as bar:
        for j in y:
            row = []
            for i in x:
                moved = dict(a)
                for name, own in directions["x"].items():
                    step = i * wide(own) + j * wide(directions["y"][name])
                    moved[name] = (wide(a[name]) + step).to(a[name].dtype)
                row.append(measure(moved))
                bar.advance(1)
            rows.append(tuple(row))
    return tuple(rows)


def _require_points(points: int) -> None:
    if points < 2:
        raise WeightsError(f"{points} points make no landscape", expected="2 or more", change="--points")
