"""Pictures of compared plans, as SVG: bars for strategies, a stepped line for throughput against quality."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from llmpq.comparison import StrategyResult, TradePoint

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 30, 150, 230, 50, 50
_HEIGHT = 420
_BAR, _LINE, _TEXT, _GRID = "#2f6f9f", "#b5432f", "#222222", "#cccccc"
_NUM_TICKS = 5


def comparison_picture(results: Sequence[StrategyResult]) -> str:
    """A bar for the throughput of each strategy, with its loss of quality beside it."""
    height = _TOP + _ROW * len(results) + _BOTTOM // 2
    fastest = max((result.throughput_tokens_per_s for result in results), default=0.0) or 1.0
    parts = [_text(10, 28, "Generated tokens per second, simulated", size=16)]
    for number, result in enumerate(results):
        y = _TOP + number * _ROW
        length = (_WIDTH - _LEFT - _RIGHT) * result.throughput_tokens_per_s / fastest
        figure = result.reason.lower() or "no plan"
        if result.estimate:
            figure = f"{result.throughput_tokens_per_s:.1f} (quality loss {result.estimate.quality_loss:.3f})"
        parts += [
            _text(_LEFT - 8, y + 16, result.strategy, anchor="end"),
            f'<rect x="{_LEFT}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 10}" fill="{_BAR}"/>',
            _text(_LEFT + length + 8, y + 16, figure),
        ]
    return _document(height, parts)


def trade_picture(points: Sequence[TradePoint]) -> str:
    """Throughput over the loss of quality: between two points the better one cannot be had for less."""
    most_loss = max((point.plan.estimate.quality_loss for point in points), default=0.0) or 1.0
    fastest = max((point.throughput_tokens_per_s for point in points), default=0.0) or 1.0
    right, bottom = _WIDTH - _BOTTOM, _HEIGHT - _BOTTOM

    def x_of(loss: float) -> float:
        return _LEFT / 2 + (right - _LEFT / 2) * loss / most_loss

    def y_of(rate: float) -> float:
        return bottom - (bottom - _TOP) * rate / fastest

    parts = [
        _text(10, 28, "Generated tokens per second over loss of quality (w4 on every layer is 1), simulated", size=15)
    ]
    for tick in range(_NUM_TICKS + 1):
        loss, rate = most_loss * tick / _NUM_TICKS, fastest * tick / _NUM_TICKS
        parts += [
            f'<line x1="{x_of(0)}" y1="{y_of(rate):.1f}" x2="{right}" y2="{y_of(rate):.1f}" stroke="{_GRID}"/>',
            _text(x_of(0) - 8, y_of(rate) + 4, f"{rate:.4g}", anchor="end"),
            _text(x_of(loss), bottom + 20, f"{loss:.3g}", anchor="middle"),
        ]
    places = [(x_of(point.plan.estimate.quality_loss), y_of(point.throughput_tokens_per_s)) for point in points]
    path = "".join(f"{'M' if number == 0 else f'H{x:.1f} L'}{x:.1f},{y:.1f} " for number, (x, y) in enumerate(places))
    parts.append(f'<path d="{path.strip()}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_LINE}"/>' for x, y in places]
    return _document(_HEIGHT, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _document(height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
    body = "\n".join(parts)
    return f'{head} fill="{_TEXT}">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
