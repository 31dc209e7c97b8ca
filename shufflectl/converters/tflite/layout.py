"""How a file holds a tensor of the graph: an algebra of axes in which most data movement costs nothing.

A TFLite file wants images as NHWC and the graph has them as NCHW. A `View` says how the axes of a *file*
tensor make up the axes of the *logical* (graph) tensor. Transposing a logical tensor permutes the
view, adding or dropping axes of size 1 changes the view, and a reshape that only splits or merges axes
changes it too, at the price of one RESHAPE operator at most. Only a consumer that needs another order of
the file's axes (`movement`) pays for a TRANSPOSE.

A channel shuffle of g groups on an NHWC tensor, with the file's axes in capitals::

    [N, C, H, W]        file [N, H, W, C]          axes N=(0) C=(3) H=(1) W=(2)
    Reshape             RESHAPE [N, H, W, G, C/G]  axes N=(0) g=(3) c=(4) H=(1) W=(2)
    Transpose           nothing                    axes N=(0) c=(4) g=(3) H=(1) W=(2)
    Reshape             nothing                    axes N=(0) C=(4, 3) H=(1) W=(2)
    a consumer          TRANSPOSE (0, 1, 2, 4, 3) and RESHAPE [N, H, W, C]

Flattening an image before a dense layer likewise leaves ``[N, H, W, C]`` as it is, with axes N=(0) and
K=(3, 1, 2): the dense layer permutes the columns of its weights instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ["Dim", "Movement", "Shape", "View", "channels_last", "movement", "reshape"]

Dim = int | str
"""The size of an axis; a name where it is symbolic. A symbolic size is never taken for 1."""

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class View:
    """The axes of a logical tensor in terms of the axes of the file's tensor.

    Attributes:
        dims: The shape of the file's tensor.
        axes: For each logical axis the file axes that make it up, the slowest first; empty for a logical axis
            of size 1 with no file axis of its own. File axes of size 1 may belong to no logical axis.
        shape: The shape of the logical tensor.
    """

    dims: Shape
    axes: tuple[tuple[int, ...], ...]
    shape: Shape

    @classmethod
    def of(cls, shape: Sequence[Dim], order: Sequence[int]) -> Self:
        """Return the view of a file tensor whose axes are the logical axes in ``order``."""
        where = {axis: position for position, axis in enumerate(order)}
        return cls(
            tuple(shape[a] for a in order), tuple((where[a],) for a in range(len(shape))), tuple(shape)
        )

    def transpose(self, perm: Sequence[int]) -> "View":
        """Return the view after a logical transpose (ONNX's ``perm``): no data moves."""
        return View(self.dims, tuple(self.axes[p] for p in perm), tuple(self.shape[p] for p in perm))

    def real(self, axis: int) -> tuple[int, ...]:
        """Return the file axes of a logical axis that are not of size 1."""
        return tuple(f for f in self.axes[axis] if self.dims[f] != 1)

    @property
    def order(self) -> tuple[int, ...] | None:
        """The file's axes as logical axes, where they correspond one to one; None otherwise."""
        if len(self.dims) != len(self.shape):
            return None
        order = self.natural_order()
        return order if movement(self, order).free else None

    def natural_order(self) -> tuple[int, ...]:
        """Return the order of the logical axes that the file's order of axes suggests.

        Axes of size 1 can stand anywhere. They go where they make the whole channels-last, if they can, then
        where they make it the logical order, and else to the front.
        """
        held = [a for a in range(len(self.shape)) if self.real(a)]
        held.sort(key=lambda a: self.real(a)[0])
        rank = len(self.shape)
        if len(self.dims) == rank and all(len(axes) == 1 for axes in self.axes):
            positions = [axes[0] for axes in self.axes]
            if len(set(positions)) == rank:
                return tuple(sorted(range(rank), key=lambda a: positions[a]))
        for order in (channels_last(rank), tuple(range(rank))):
            if [a for a in order if a in held] == held:
                return order
        return (*(a for a in range(rank) if a not in held), *held)


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the order of axes that has axis 1 last: NHWC for rank 4; the logical order below rank 3."""
    return (0, *range(2, rank), 1) if rank >= 3 else tuple(range(rank))


@dataclass(frozen=True)
class Movement:
    """What it takes to bring a file tensor into an order of logical axes, one file axis each.

    Attributes:
        perm: The permutation of the file's axes that a TRANSPOSE applies first; None where the order fits.
        dims: The shape that a RESHAPE gives afterwards; None where the shape fits.
    """

    perm: tuple[int, ...] | None
    dims: Shape | None

    @property
    def free(self) -> bool:
        """Whether nothing is to be done."""
        return self.perm is None and self.dims is None


def movement(view: View, order: Sequence[int]) -> Movement:
    """Return what makes the file's axes the logical axes in ``order``."""
    wanted = [f for axis in order for f in view.axes[axis]]
    target = tuple(view.shape[axis] for axis in order)
    real = [f for f in wanted if view.dims[f] != 1]
    if real == sorted(real):
        return Movement(None, None if view.dims == target else target)
    perm = (*wanted, *(f for f in range(len(view.dims)) if f not in wanted))
    moved = tuple(view.dims[f] for f in perm)
    return Movement(perm, None if moved == target else target)


def reshape(view: View, shape: Sequence[Dim]) -> tuple[Shape | None, View] | None:
    """Return the view after a logical reshape.

    Sizes are matched from the slowest axis on: the two shapes fall into groups of equal product.

    1. Every group's file axes lie next to one another in logical order: one RESHAPE, or none where the sizes
       are the same.
    2. Some do not, yet every new axis is a run of file axes: nothing is emitted, the new axes are made up of
       several file axes until a consumer settles the matter.
    3. Else a transpose has to bring the groups together before (`gathered_order`).

    Args:
        view: The tensor before.
        shape: The logical shape afterwards.

    Returns:
        The shape that a RESHAPE has to give the file's tensor (None: it stays as it is) and the view of it
        afterwards; None in case 3.
    """
    physical = [f for f in range(len(view.dims)) if view.dims[f] != 1]
    position = {f: i for i, f in enumerate(physical)}
    groups = []
    for before, after in _groups(view.shape, shape):
        factors = [f for axis in before for f in view.real(axis)]
        places = [position[f] for f in factors]
        groups.append((factors, after, places == list(range(places[0], places[0] + len(places)))))
    if all(together for _, _, together in groups):  # case 1
        in_place = {factors[0]: after for factors, after, _ in groups}
        order = [axis for f in physical if f in in_place for axis in in_place[f]]
        if [shape[a] for a in order] != [view.dims[f] for f in physical]:
            bare = tuple(((order.index(a),) if a in order else ()) for a in range(len(shape)))
            sizes = tuple(shape[a] for a in order)
            whole = View.of(shape, View(sizes, bare, tuple(shape)).natural_order())
            return whole.dims, whole  # axes of size 1 cost nothing in a RESHAPE that is needed anyway
    axes: list[tuple[int, ...]] = [()] * len(shape)
    for factors, after, _ in groups:  # case 2
        runs = _runs([view.dims[f] for f in factors], [shape[a] for a in after])
        if runs is None:
            return None
        for axis, run in zip(after, runs, strict=True):
            axes[axis] = tuple(factors[i] for i in run)
    spare = iter(f for f in range(len(view.dims)) if view.dims[f] == 1)
    for axis, size in enumerate(shape):
        if size == 1:
            axes[axis] = tuple(f for f in [next(spare, None)] if f is not None)
    return None, View(view.dims, tuple(axes), tuple(shape))


def gathered_order(view: View, shape: Sequence[Dim]) -> tuple[int, ...]:
    """Return an order of the logical axes in which a reshape to ``shape`` needs no further transpose."""
    order: list[int] = []
    groups = [before for before, _ in _groups(view.shape, shape)]
    groups.sort(key=lambda before: min(f for axis in before for f in view.real(axis)))
    for before in groups:
        order.extend(before)
    return (*(a for a in range(len(view.shape)) if a not in order), *order)


def _groups(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes into runs of axes of equal product, axes of size 1 left out."""
    left = [a for a, size in enumerate(before) if size != 1]
    right = [a for a, size in enumerate(after) if size != 1]
    products = _products([before[a] for a in left])
    others = {product: i for i, product in enumerate(_products([after[a] for a in right]))}
    result = []
    start = other_start = 0
    for i, product in enumerate(products):
        j = others.get(product)
        if i == len(products) - 1:
            j = len(right) - 1  # the last axes belong together, whatever a symbolic size hides
        if j is not None and j >= other_start:
            result.append((left[start : i + 1], right[other_start : j + 1]))
            start, other_start = i + 1, j + 1
    return result


def _products(sizes: Sequence[Dim]) -> list[tuple[int, tuple[str, ...]]]:
    """Return the running products of sizes: the number and the symbols in it."""
    number = 1
    symbols: tuple[str, ...] = ()
    result: list[tuple[int, tuple[str, ...]]] = []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            symbols = tuple(sorted((*symbols, size)))
        result.append((number, symbols))
    return result


def _runs(factors: Sequence[Dim], axes: Sequence[Dim]) -> list[range] | None:
    """Return the run of factors whose product is each axis; None where an axis ends within a factor."""
    products, wanted = _products(factors), _products(axes)
    if any(product not in products for product in wanted):
        return None
    ends = [products.index(product) + 1 for product in wanted]
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
