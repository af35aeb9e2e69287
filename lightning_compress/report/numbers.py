"""Numbers as people read them."""

from __future__ import annotations

import math

_DIGITS = 3
_MINUS = "−"
_SHARES = ("acc", "f1", "precision", "recall", "auroc", "auc", "specificity", "exact_match")
_STAGES = ("test", "val", "validation", "valid", "train")
_FULL_NAMES = {"acc": "accuracy", "f1": "F1", "mcc": "MCC", "auroc": "AUROC", "auc": "AUC"}


def significant(value: float) -> str:
    """Three digits that say something, without an exponent where one can do without.

    Example:
        >>> significant(1234.5), significant(0.98765), significant(12.0), significant(-0.5), significant(2.5e-7)
        ('1234', '0.988', '12.0', '−0.500', '2.5e−07')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    tiny = exponent < -_DIGITS
    text = f"{value:.1e}" if tiny else f"{value:.{max(0, _DIGITS - 1 - exponent)}f}"
    return text.replace("-", _MINUS)


def scaled(value: float, unit: str = "") -> str:
    """A large number with k, M, G or T.

    Example:
        >>> scaled(22_713_216), scaled(90_852_864, "B"), scaled(999), scaled(4_096, "B")
        ('22.7 M', '90.9 MB', '999', '4.10 kB')
    """
    if not math.isfinite(value):
        return "not finite"
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(value) >= 999.5 and len(prefixes) > 1:  # noqa: PLR2004 (from here on it rounds to a thousand)
        value, prefixes = value / 1000, prefixes[1:]
    is_whole = prefixes[0] == "" and value == int(value)
    number = str(int(value)).replace("-", _MINUS) if is_whole else significant(value)
    return f"{number} {prefixes[0]}{unit}".rstrip()


def share(value: float) -> str:
    """A share as a percentage; only what is nothing reads 0%, only what is everything 100%.

    Example:
        >>> share(0.8449), share(1.0), share(0.99999), share(0.0001)
        ('84.5%', '100%', '>99.9%', '<0.1%')
    """
    if not math.isfinite(value):
        return "not finite"
    if value in (0, 1):
        return f"{value:.0%}"
    if 0 < value < 0.0005:  # noqa: PLR2004 (rounds to 0.0%)
        return "<0.1%"
    if 0.9995 <= value < 1:  # noqa: PLR2004 (rounds to 100.0%)
        return ">99.9%"
    return f"{value:.1%}".replace("-", _MINUS)


def signed(value: float, digits: int = 1) -> str:
    """With its sign in front.

    Example:
        >>> signed(-0.2), signed(1.25), signed(0.01)
        ('−0.2', '+1.2', '±0.0')
    """
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):.{digits}f}"
    sign = "±" if float(text) == 0 else _MINUS if value < 0 else "+"
    return sign + text


def times(before: float, after: float, *, less: str = "smaller", more: str = "larger") -> str:
    """How many times less the second number is than the first.

    Example:
        >>> times(90.9, 27.5), times(2.0, 3.0, less="faster", more="slower"), times(5.0, 5.01)
        ('3.3× smaller', '1.5× slower', 'the same')
    """
    if not (before > 0 and after > 0 and math.isfinite(before) and math.isfinite(after)):
        return "the same" if before == after else "–"
    ratio = max(before / after, after / before)
    if ratio < 1.005:  # noqa: PLR2004 (rounds to 1.00)
        return "the same"
    return f"{factor(ratio)} {less if before > after else more}"


def factor(ratio: float) -> str:
    """A ratio as a factor, the closer to one the finer.

    Example:
        >>> factor(3.31), factor(1.04), factor(12.6), factor(150.2)
        ('3.3×', '1.04×', '12.6×', '150×')
    """
    if not math.isfinite(ratio):
        return "not finite"
    digits = 2 if ratio < 1.095 else 1 if ratio < 99.95 else 0  # noqa: PLR2004
    return f"{ratio:.{digits}f}×"


def metric_name(name: str) -> str:
    """A logged metric's name in plain words.

    Example:
        >>> metric_name("test_acc"), metric_name("val/loss"), metric_name("test_f1/dataloader_idx_0")
        ('accuracy', 'loss', 'F1')
    """
    words = name.split("/dataloader_idx_", maxsplit=1)[0].replace("/", "_").split("_")
    if len(words) > 1 and words[0].lower() in _STAGES:
        words = words[1:]
    return " ".join(_FULL_NAMES.get(word.lower(), word) for word in words)


def is_share(name: str, *values: float) -> bool:
    """Whether a metric is one that lies between 0 and 1 and is read as a percentage."""
    return any(word in name.lower() for word in _SHARES) and all(0 <= value <= 1 for value in values)


def metric(name: str, value: float) -> str:
    """A metric's value: a percentage where its name says so.

    Example:
        >>> metric("test_acc", 0.8449), metric("test_loss", 0.39124)
        ('84.5%', '0.391')
    """
    return share(value) if is_share(name, value) else significant(value)


def metric_change(name: str, before: float, after: float) -> str:
    """The change of a metric: in points where it is a percentage.

    Example:
        >>> metric_change("acc", 0.845, 0.843), metric_change("loss", 0.4, 0.6), metric_change("acc", 0.5, 0.5)
        ('−0.2 points', '+0.200', 'no change')
    """
    if before == after:
        return "no change"
    if is_share(name, before, after):
        return f"{signed(100 * (after - before))} points"
    text = significant(after - before)
    return text if text.startswith((_MINUS, "n")) else f"+{text}"
