"""What arguments must be: each check takes a name, a value and its range, and returns the value or raises one line.

Numpy's scalars are numbers and booleans like Python's own; a text or a number is no boolean. `typed` is the door of the
public functions: it compares every argument with the signature, before the function checks the ranges. What others
wrote, such as the text of a file, is shown by `quoted` or `plain`: in one line, printable, and cut where it is long.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import os
import reprlib
import typing
from collections.abc import Callable, Collection, Sequence
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union

import numpy as np

__all__: list[str] = []

LARGEST_SEED = 2**63 - 1
LARGEST_INTEGER = 2**1023  # that a double holds
CUT = 160  # characters of a value in a message

KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a text", NoneType: "None"}
KINDS |= {np.ndarray: "an array of real numbers", Callable: "a function"}
STATISTICS = ("statistic", "statistics", "asked")  # `analysis.naming` knows more of them

P = ParamSpec("P")
R = TypeVar("R")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = CUT
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 12


def quoted(value: object) -> str:
    """Return the repr of a value in one line of printable characters, cut where it is long."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__} of many digits"
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(text.split()))
    return text if len(text) <= 2 * CUT else f"{text[: 2 * CUT]}..."


def plain(text: object) -> str:
    """Return a text as it is if it is short and printable, such as the name of a file, else `quoted`."""
    found = str(text)
    return found if found.isprintable() and len(found) <= CUT else quoted(found)


def reason(error: BaseException) -> str:
    """Return the kind and the text of an error from below in one line."""
    return f"{type(error).__name__}: {quoted(str(error))[1:-1]}"


def integer(what: str, value: int, low: int, high: int = 2**31 - 1) -> int:
    """Return `value` as an int if it is an integer from `low` to `high`, else raise a ValueError with the rule."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{what} must be an integer of at least {low}; got {quoted(value)}")
    if value > high:
        raise ValueError(f"{what} must be an integer of at most {high}; got {quoted(value)}")
    return int(value)


def number(what: str, value: float, low: float, high: float) -> float:
    """Return `value` as a float if it is a number from `low` to `high`, else raise a ValueError with the rule."""
    known = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not known or not low <= value <= high or (isinstance(value, int) and abs(value) > LARGEST_INTEGER):
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}; got {quoted(value)}")
    return float(value)


def pair(what: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Return `value` as two floats if it is two numbers from `low` to `high`."""
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 2:
        raise ValueError(f"{what} must be two numbers; got {quoted(value)}")
    return number(what, value[0], low, high), number(what, value[1], low, high)


def increasing(what: str, value: Sequence[float]) -> tuple[float, float]:
    """Return `value` as two floats if it is two increasing numbers, such as `(0, 255)`."""
    low, high = pair(what, value, -1e30, 1e30)
    if not low < high:
        raise ValueError(f"{what} must be two increasing numbers such as (0, 255); got {quoted(value)}")
    return low, high


def boolean(what: str, value: bool) -> bool:
    """Return `value` as a bool if it is one, else raise a ValueError: a text such as "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} must be True or False; got {quoted(value)}")
    return bool(value)


def choice(what: str, value: str, known: Collection[str]) -> str:
    """Return `value` if it is one of the known names, else raise a ValueError with the closest of them."""
    if isinstance(value, str) and value in known:
        return value
    close = difflib.get_close_matches(str(value), known, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{what} must be one of {tuple(known)}; got {quoted(value)}{hint}")


def unknown(what: str, name: str, known: Collection[str], otherwise: str) -> str:
    """Return the line that nothing has this name, with the closest name that something has, or with all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(known)}"
    return f"{what} is called {quoted(name)}; {hint}"


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that takes what its signature says: numbers, booleans, texts, arrays and objects of a class.

    Numpy's scalars become Python's. Arrays of numbers may be lists; they are passed on as they are. Other kinds of
    arguments, such as protocols, are the function's own business.

    Raises:
        ValueError: in the call, naming the argument, what it must be and what was given.
    """
    signature, name = inspect.signature(function), function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        hints = {key: Any if key in STATISTICS else hint for key, hint in _hints(function).items()}
        for key, value in given.arguments.items():
            kind = signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                given.arguments[key] = tuple(
                    _fitted(f"{name}: each of {key}", one, hints.get(key, Any)) for one in value
                )
            elif kind is not inspect.Parameter.VAR_KEYWORD:
                given.arguments[key] = _fitted(f"{name}: {key}", value, hints.get(key, Any))
        return function(*given.args, **given.kwargs)

    return call


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fitted(what: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Return a value that is of one of the kinds in a hint, numpy's scalars as Python's, or raise."""
    if typing.get_origin(hint) is tuple and {*typing.get_args(hint)} - {...} == {int}:
        sizes, wanted = shape(value), len(typing.get_args(hint))
        if ... not in typing.get_args(hint) and len(sizes) != wanted:
            raise ValueError(f"{what} must be {wanted} sizes; got {quoted(value)}")
        return sizes
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if Any in kinds or not all(isinstance(kind, type) for kind in kinds):
        return value
    if value is None and NoneType in kinds:
        return value
    protocol = kinds[0] if getattr(kinds[0], "_is_protocol", False) else None
    lost = [name for name in vars(protocol or object) if name[0] != "_" and not hasattr(value, name)]
    if protocol and lost:
        raise ValueError(
            f"{what} must have {', '.join(lost)}, as a {protocol.__name__} has; got a {type(value).__name__}"
        )
    if protocol:
        return value
    if any(kind.__name__ == "Dataset" for kind in kinds):  # `dataset.images` says what a run is
        return value
    if isinstance(value, np.generic) and not isinstance(value, kinds):
        value = value.item()
    known = {kind for kind in kinds if kind not in (bool, int, float, np.ndarray)}
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = (
        (bool in kinds and isinstance(value, bool))
        or (float in kinds and numeric)
        or (int in kinds and numeric and isinstance(value, int))
        or isinstance(value, tuple(known))
        or (np.ndarray in kinds and _is_array(value))
        or (tuple in kinds and isinstance(value, list))
    )
    if not fits:
        names = " or ".join(KINDS.get(kind, f"a {kind.__name__}") for kind in kinds)
        simple = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
        raise ValueError(f"{what} must be {names}; got {quoted(value) if simple else f'a {type(value).__name__}'}")
    if np.ndarray in kinds and not isinstance(value, (np.ndarray, *known)):
        return np.asarray(value)
    return value


def _is_array(value: object) -> bool:
    """Return whether a value is an array of numbers or booleans, or lists of them."""
    if not isinstance(value, (np.ndarray, list, tuple)) and not hasattr(value, "__array__"):
        return False
    try:
        return np.asarray(value).dtype.kind in "fiub"
    except (TypeError, ValueError, RuntimeError):
        return False


def level(value: float) -> float:
    """Return the level of an interval, from 0.01 to 0.9999."""
    return number("level", value, 0.01, 0.9999)


def seed(value: int) -> int:
    """Return a seed, an integer from 0 to 2^63 - 1."""
    return integer("seed", value, 0, LARGEST_SEED)


def shape(value: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of positive integers."""
    try:
        sizes = () if isinstance(value, (str, bytes)) else tuple(value)
        sizes = tuple(0 if isinstance(size, (bool, np.bool_)) else operator.index(size) for size in sizes)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a shape is a non-empty tuple of positive integers such as (3, 32, 32); got {quoted(value)}")
    return sizes


def units(value: Sequence[int], count: int) -> Sequence[int]:
    """Return numbers of units, each an integer from 0 to count - 1."""
    if isinstance(value, range):
        numbers, ends = value, [*value[:1], *value[-1:]]
    else:
        values = np.asarray(value) if isinstance(value, (Sequence, np.ndarray)) else np.array(None)
        flags = [number for number in value if isinstance(number, (bool, np.bool_))] if values.ndim == 1 else []
        if values.ndim != 1 or flags or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(f"units are a list of integers from 0 to {count - 1}; got {quoted(value)}")
        numbers = ends = values.tolist()
    wrong = [number for number in ends if not 0 <= number < count]
    if wrong:
        raise ValueError(f"the design has units 0 to {count - 1}; got unit {wrong[0]}")
    return numbers


def array(what: str, value: object) -> np.ndarray:
    """Return real numbers in an array of doubles; complex numbers, texts and booleans are refused."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        found = np.array(None)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{what} consists of real numbers; got {quoted(value)}")
    return found.astype(float, copy=False)


def memory(what: str, *sizes: int, itemsize: int = 4) -> None:
    """Refuse an array of these sizes, before any work, if it takes more bytes than the machine has."""
    needed, there = itemsize * math.prod(map(int, sizes)), _memory()
    if needed > there:
        found = f"{needed / 1e9:.3g} GB, {' x '.join(map(str, sizes))} values of {itemsize} bytes"
        raise ValueError(f"{what} must fit in memory, {there / 1e9:.3g} GB; got {found}")


@functools.cache
def _memory() -> int:
    """Return the bytes of this machine's memory, 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**36


def kept(values: np.ndarray) -> np.ndarray:
    """Return a copy of an array that nobody can change."""
    copy = np.array(values)
    copy.flags.writeable = False
    return copy
