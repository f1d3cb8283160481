"""Figures as bars, in an SVG file that any browser shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _ROW, _LABEL, _VALUE, _TOP = 900, 26, 260, 210, 56
_OURS, _OTHERS, _INK, _PAPER = "#2563a8", "#9aa5b1", "#1f2933", "#ffffff"


@dataclass(frozen=True)
class Bar:
    """One figure.

    Attributes:
        label: What it is of.
        value: How long the bar is.
        note: What stands behind it: the figure with its unit.
        is_ours: Whether to bring it out.
    """

    label: str
    value: float
    note: str
    is_ours: bool = False


def bar_chart(title: str, bars: Sequence[Bar], caption: str) -> str:
    """An SVG document: one horizontal bar a line, all to one scale that begins at 0."""
    height = _TOP + _ROW * len(bars) + 34
    scale = (_WIDTH - _LABEL - _VALUE) / (max((bar.value for bar in bars), default=0) or 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="{_PAPER}"/>',
        _text(16, 30, title, size=16),
    ]
    for row, bar in enumerate(bars):
        top = _TOP + row * _ROW
        length = max(bar.value * scale, 1)
        fill = _OURS if bar.is_ours else _OTHERS
        lines += [
            _text(_LABEL - 8, top + 15, bar.label, anchor="end"),
            f'<rect x="{_LABEL}" y="{top + 2}" width="{length:.1f}" height="{_ROW - 8}" fill="{fill}"/>',
            _text(_LABEL + length + 6, top + 15, bar.note),
        ]
    lines += [_text(16, height - 12, caption, size=11), "</svg>"]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}"'
    return f"<text {place}>{escape(text)}</text>"
