"""Sizes of dimensions as expressions: whole numbers, named sizes of the inputs, and the number of rows.

A `Size` is a sum of products of atoms with whole coefficients, in one canonical form, so that two equal expressions are
equal objects. What has no such form, such as a quotient that leaves a rest, becomes an atom of its own. A plain `int`
stands for what is known.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Dim = Any  # int | Size, and in contents also float and bool


@dataclass(frozen=True, order=True)
class Atom:
    """A factor that is not taken apart. Two atoms of one name are equal."""

    name: str
    of_rows: bool = field(compare=False)  # whether the number of rows is in it
    inside: "Size | None" = field(compare=False, default=None)  # the sum that it stands for


@dataclass(frozen=True)
class Size:
    """A sum of terms: coefficient times atoms. Never a plain number."""

    terms: tuple[tuple[tuple[Atom, ...], int], ...]  # sorted by atoms, no coefficient is 0

    @cached_property
    def of_rows(self) -> bool:
        """Whether the number of rows is in it."""
        return any(atom.of_rows for atoms, _ in self.terms for atom in atoms)

    def __str__(self) -> str:
        parts = []
        for atoms, coefficient in self.terms:
            names = [atom.name for atom in atoms]
            parts.append("*".join(names if coefficient == 1 and names else [str(coefficient), *names]))
        return "+".join(parts)

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, float) and not other.is_integer():
            return opaque("add", self, other)
        return _sum((*self.terms, *_terms(other)))

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _sum((atoms, -coefficient) for atoms, coefficient in self.terms)

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, float) and not other.is_integer():
            return opaque("mul", self, other)
        if not isinstance(other, Size):
            return _sum((atoms, coefficient * int(other)) for atoms, coefficient in self.terms)
        (one, first), (another, second) = _product(self), _product(other)
        return _sum([(tuple(sorted((*one, *another))), first * second)])

    __rmul__ = __mul__


ROWS = Size((((Atom("rows", True),), 1),))
_numbers = itertools.count()


def named(name: str) -> Size:
    """A size that does not depend on the number of rows; the same name is the same size."""
    return Size((((Atom(name, False),), 1),))


def fresh() -> Size:
    """A size of which nothing is known but that it does not depend on rows."""
    return named(f"?{next(_numbers)}")


def opaque(operation: str, *operands: Dim) -> Size:
    """The result of an operation that is not computed; the same operands have the same result."""
    text = ",".join(map(str, operands))
    return Size((((Atom(f"{operation}({text})", any(map(mentions_rows, operands))),), 1),))


def least(limit: int, size: Size) -> Size:
    """The smaller one of a number above 0 and the size of an input's dimension."""
    return opaque("least", limit, size)


def is_least_with(one: Dim, size: Dim) -> bool:
    """Whether `one` is `least(…, size)`, for whatever number."""
    name = one.terms[0][0][0].name if isinstance(one, Size) and one.terms[0][0] else ""
    return name.startswith("least(") and one == opaque("least", name[len("least(") :].partition(",")[0], size)


def is_plain(size: Dim) -> bool:
    """Whether it is the size of an input's dimension, without the number of rows: never below 0."""
    return (
        isinstance(size, Size)
        and not size.of_rows
        and len(size.terms) == 1
        and size.terms[0][1] == 1
        and len(size.terms[0][0]) == 1
        and not any(sign in size.terms[0][0][0].name for sign in "([")
    )


def mentions_rows(size: Dim) -> bool:
    """Whether the number of rows is in it."""
    return isinstance(size, Size) and size.of_rows


def product(sizes: Iterable[Dim]) -> Dim:
    """All of them multiplied."""
    result: Dim = 1
    for size in sizes:
        result = result * size
    return result


def exact_quotient(one: Dim, other: Dim) -> Dim | None:
    """`one / other` where it is a size; None where nothing says that it leaves no rest."""
    if not isinstance(one, Size) and not isinstance(other, Size):
        return one // other if other and one % other == 0 else None
    if one == other:
        return 1
    if not isinstance(other, Size):
        if not other or any(coefficient % other for _, coefficient in one.terms):
            return None
        return _sum((atoms, int(coefficient // other)) for atoms, coefficient in one.terms)
    if one == 0:
        return 0
    (atoms, coefficient), (divisors, divisor) = _product(one), _product(other)
    left = list(atoms)
    for atom in divisors:
        if atom not in left:
            return None
        left.remove(atom)
    return _sum([(tuple(left), coefficient // divisor)]) if coefficient % divisor == 0 else None


def quotient(one: Dim, other: Dim, *, whole: bool) -> Dim:
    """`one / other`, rounded towards zero where it is `whole`, as an expression where it is not known."""
    if not isinstance(one, Size) and not isinstance(other, Size):
        if not other:
            return opaque("divide", one, other)
        if not whole:
            return one / other
        towards_zero = abs(one) // abs(other)
        return towards_zero if (one < 0) == (other < 0) else -towards_zero
    exact = None if isinstance(one, float) or isinstance(other, float) else exact_quotient(one, other)
    return opaque("whole" if whole else "divide", one, other) if exact is None else exact


def equal(one: Dim, other: Dim) -> bool | None:
    """Whether they are the same in every request; None where that is open."""
    difference = one - other
    if not isinstance(difference, Size):
        return bool(difference == 0)
    sign = _sign(difference)
    return False if sign else None


def greater(one: Dim, other: Dim) -> bool | None:
    """Whether `one` is the larger in every request, or never; None where that is open."""
    difference = one - other
    if not isinstance(difference, Size):
        return bool(difference > 0)
    sign = _sign(difference)
    return None if sign == 0 else sign > 0


def _sign(size: Size) -> int:
    """1 or -1 where the expression is above or below 0 whatever the sizes; all atoms are at least 0."""
    constant = next((coefficient for atoms, coefficient in size.terms if not atoms), 0)
    signs = {coefficient > 0 for _, coefficient in size.terms}
    if not constant or len(signs) > 1 or any("(" in atom.name for atoms, _ in size.terms for atom in atoms):
        return 0  # an opaque result may be below 0
    return 1 if constant > 0 else -1


def _terms(size: Dim) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    return size.terms if isinstance(size, Size) else (((), int(size)),)


def _sum(terms: Iterable[tuple[tuple[Atom, ...], int]]) -> Dim:
    collected: dict[tuple[Atom, ...], int] = {}
    for atoms, coefficient in terms:
        if len(atoms) == 1 and atoms[0].inside is not None:  # a sum that stands alone again
            for inner, inner_coefficient in atoms[0].inside.terms:
                collected[inner] = collected.get(inner, 0) + coefficient * inner_coefficient
        else:
            collected[atoms] = collected.get(atoms, 0) + coefficient
    kept = tuple(sorted((atoms, coefficient) for atoms, coefficient in collected.items() if coefficient))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Size(kept)


def _product(size: Dim) -> tuple[tuple[Atom, ...], int]:
    """The size as one product; a sum of several terms becomes an atom."""
    if not isinstance(size, Size):
        return (), int(size)
    if len(size.terms) == 1:
        return size.terms[0]
    return (Atom(f"[{size}]", size.of_rows, size),), 1
