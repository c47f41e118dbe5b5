"""How the report writes numbers: true minus signs, grouped digits, units that do not break."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeGuard

_NBSP = "\u00a0"
_THIN = "\u202f"
_MINUS = "\u2212"
_DASH = "\u2013"
_TIMES = "\u00d7"

_METRIC_NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "loss": "loss",
    "agreement": "agreement with dense",
    "cosine": "cosine similarity to dense",
    "sqnr_db": "signal to noise to dense (dB)",
    "mean_abs_error": "mean output difference",
    "max_abs_error": "largest output difference",
}
_FRACTIONS = frozenset({"top1", "top5", "agreement", "accuracy", "miou", "f1"})


def capital(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def is_fraction(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and reads best as a percentage."""
    return metric in _FRACTIONS


def metric_name(metric: str) -> str:
    """A metric's name in words; an unknown one keeps its key."""
    return _METRIC_NAMES.get(metric, metric)


def percent(fraction: float | None, digits: int = 2) -> str:
    """`0.8` as "80.00 %"."""
    if not _finite(fraction):
        return _DASH
    return f"{100 * fraction:.{digits}f}{_NBSP}%".replace("-", _MINUS)


def share(fraction: float | None) -> str:
    """`0.125` as "12.5 %": at most four significant digits, none of them for show."""
    return f"{number(100 * fraction)}{_NBSP}%" if _finite(fraction) else _DASH


def points(difference: float | None, digits: int = 2) -> str:
    """A difference of two fractions in percentage points, always with its sign."""
    if not _finite(difference):
        return _DASH
    value = round(100 * difference, digits)
    sign = "+" if value > 0 else _MINUS if value < 0 else "±"
    return f"{sign}{abs(value):.{digits}f}{_NBSP}points"


def metric_value(metric: str, value: float | None) -> str:
    """A metric's value, as a percentage where it is a fraction."""
    return percent(value) if is_fraction(metric) else number(value)


def metric_difference(metric: str, difference: float | None) -> str:
    """The difference of two values of a metric, with its sign."""
    if is_fraction(metric):
        return points(difference)
    if not _finite(difference):
        return _DASH
    return number(difference) if difference < 0 else f"+{number(difference)}"


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits."""
    if not _finite(value):
        return _DASH
    return f"{value:.{digits}g}".replace("-", _MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """A number with `digits` decimals, always with its sign: "+0.0012"."""
    return f"{value:+.{digits}f}".replace("-", _MINUS) if _finite(value) else _DASH


def signed_interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """Both ends of an interval with their signs; words where one seed gives none."""
    if not (_finite(low) and _finite(high)):
        return "none from one seed"
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def signed_percent(fraction: float | None, digits: int = 2) -> str:
    """`0.012` as "+1.20 %", always with its sign."""
    return f"{signed(100 * fraction, digits)}{_NBSP}%" if _finite(fraction) else _DASH


def amount(value: float | None) -> str:
    """A mean of counts: grouped digits, with a decimal where it is small and not whole."""
    if not _finite(value) or abs(value) >= 100 or value == round(value):
        return count(value)
    return f"{value:,.1f}".replace(",", _THIN).replace("-", _MINUS)


def count(value: float | None) -> str:
    """`1234567` with grouped digits."""
    if not _finite(value):
        return _DASH
    return f"{value:,.0f}".replace(",", _THIN).replace("-", _MINUS)


def short_count(value: float | None) -> str:
    """A large count with four significant digits and a prefix: "12.85 M"."""
    if not _finite(value):
        return _DASH
    scaled, unit = float(value), ""
    for unit in ("", "k", "M", "G", "T"):
        if abs(scaled) < 999.95 or unit == "T":
            break
        scaled /= 1000
    return f"{number(scaled)}{_NBSP}{unit}" if unit else count(value)


def milliseconds(value: float | None) -> str:
    """A latency with its unit."""
    return f"{number(value)}{_NBSP}ms" if _finite(value) else _DASH


def ratio(value: float | None, digits: int = 2) -> str:
    """`1.25` as "1.25" and a multiplication sign."""
    return f"{value:.{digits}f}{_TIMES}" if _finite(value) else _DASH


def interval(low: float, high: float, digits: int = 2) -> str:
    """Both ends of an interval."""
    return f"{low:.{digits}f}{_DASH}{high:.{digits}f}"


def size(value_bytes: float | None) -> str:
    """A size in bytes with a decimal unit."""
    if not _finite(value_bytes):
        return _DASH
    value = float(value_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f}{_NBSP}bytes" if unit == "bytes" else f"{value:.2f}{_NBSP}{unit}"


def duration(seconds: float | None) -> str:
    """Seconds as "5 min 53 s"."""
    if not _finite(seconds):
        return _DASH
    if seconds < 60:
        return f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}{_NBSP}h"] if hours else []
    parts.append(f"{minutes}{_NBSP}min")
    if not hours:
        parts.append(f"{rest}{_NBSP}s")
    return " ".join(parts)


def shorten(name: str, length: int) -> str:
    """`name` with its middle left out, so that it has at most `length` characters."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which those that occur more than once get a number: `a (1)`, `b`, `a (2)`."""
    counts, seen = Counter(names), Counter[str]()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return labels


def file_labels(paths: Sequence[str], length: int) -> list[str]:
    """What tells files apart: their names, or where these are the same, their paths."""
    unique = list(dict.fromkeys(paths))
    names = [PurePath(path).name for path in unique]
    if len(set(names)) < len(names):
        names = distinct(unique, length)
    label = dict(zip(unique, names, strict=True))
    return numbered([label[path] for path in paths])


def distinct(names: Sequence[str], length: int) -> list[str]:
    """Names at most `length` characters long that still tell them apart, as far as that goes.

    Where one is too long, what all begin and end with is left out, up to a separator.
    """
    if len(names) > 1 and any(len(name) > length for name in names):
        start = _shared(names)
        rest = [name[start:] for name in names]
        end = _shared([name[::-1] for name in rest])
        names = [
            ("…" if start else "") + name[: len(name) - end] + ("…" if end else "") for name in rest
        ]
    return [shorten(name, length) for name in names]


def _shared(names: Sequence[str]) -> int:
    """How many characters all names begin with, up to and with a separator."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    count = next((place for place, (a, b) in pairs if a != b), min(len(first), len(last)))
    return len(re.sub(r"[^./:_]*$", "", first[:count]))


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of a dotted key and a text, in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flatten(value, f"{name}.")
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif value is None:
            rows.append((name, "unknown"))
        elif isinstance(value, float):
            rows.append((name, number(value)))
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(shorten(str(item), 120) for item in value[:50])))
        else:
            rows.append((name, shorten(str(value), 400)))
    return rows


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
