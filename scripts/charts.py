"""Curves over the steps of a run as SVG, for report.py's page. Colours and dashes are in report.css."""
import html
import math
import statistics
from typing import NamedTuple

LEFT, RIGHT, TOP, BOTTOM = 52, 378, 18, 194  # of the area between the axes, in a picture of 400 x 230
STYLES = 8  # of curves, .k0 to .k7


class Curve(NamedTuple):
    name: str
    points: list[tuple[float, float]]
    freeze: int | None  # T_end


def thin(rows: list[tuple], most: int) -> list[tuple]:
    """At most `most` tuples of numbers: the means of equally many neighbours."""
    n = -(-len(rows) // most) or 1
    return [tuple(map(statistics.fmean, zip(*rows[i:i + n]))) for i in range(0, len(rows), n)]


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round numbers from `low` to `high`, and what stands beside the axis."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= 5)
    at = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:.3g}" if digits > 5 or step > 1e6 else f"{value:,.{digits}f}") for value in at]


class Plane(NamedTuple):
    """Where steps from 0 to `end` and values from `low` to `high` are, in a picture of 400 x 230."""
    end: float
    low: float
    high: float

    def at(self, step: float, value: float) -> tuple[str, str]:
        within = max(self.low, min(value, self.high))
        across, up = step / self.end, (within - self.low) / (self.high - self.low)
        return f"{LEFT + (RIGHT - LEFT) * across:.1f}", f"{BOTTOM - (BOTTOM - TOP) * up:.1f}"

    def axes(self) -> str:
        rows, columns = ([(*self.at(0, value), label) for value, label in ticks(self.low, self.high)],
                         [(*self.at(value, self.low), label) for value, label in ticks(0, self.end)])
        return ("".join(f'<path class="rule" d="M{LEFT} {y}H{RIGHT}"/><text x="{LEFT - 6}" y="{y}" dy="4" '
                        f'text-anchor="end">{label}</text>' for _, y, label in rows)
                + "".join(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{label}</text>'
                          for x, _, label in columns)
                + f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>'
                f'<text x="{RIGHT}" y="226" text-anchor="end">step</text>')

    def freeze(self, step: float, label: str) -> str:
        x = self.at(step, self.low)[0]
        return (f'<path class="freeze" d="M{x} {TOP}V{BOTTOM}"/>'
                f'<text x="{x}" y="{TOP - 5}" text-anchor="middle">{label}</text>')

    def curve(self, points: list[tuple[float, float]], style: int) -> str:
        line = [self.at(*point) for point in points]
        dots = [f'<circle class="k{style}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in line if len(line) <= 30]
        return f'<polyline class="curve k{style}" points="{" ".join(map(",".join, line))}"/>' + "".join(dots)


def plane(curves: list[Curve], from_zero: bool) -> Plane:
    """With room for all points; from above zero, as for losses, without those of the first 2 % of the steps, from
    which they fall so far that nothing could be told apart later."""
    end = max(1, *(step for curve in curves for step, _ in curve.points))
    values = [y for curve in curves for x, y in curve.points
              if from_zero or x > 0.02 * end or x == curve.points[-1][0]]
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Plane(end, min(0.0, low) if from_zero else low - room, high + room)


def chart(name: str, title: str, unit: str, from_zero: bool, curves: list[Curve]) -> str:
    """A figure, `name` being its own on the page: curves over the steps, axes, each T_end as a dashed line, and a
    legend if there are several. Nothing if there is nothing to draw."""
    drawn = [(i % STYLES, curve) for i, curve in enumerate(curves) if curve.points]
    if not drawn:
        return ""
    shown = [curve for _, curve in drawn]
    area = plane(shown, from_zero)
    freezes = sorted({curve.freeze for curve in shown if curve.freeze is not None and curve.freeze <= area.end})
    parts = [area.axes(), *(area.freeze(step, "" if i else "T_end") for i, step in enumerate(freezes)),
             *(area.curve(thin(curve.points, 400), style) for style, curve in drawn)]
    said = "; ".join(f"{curve.name}: {curve.points[0][1]:.4g} at step {curve.points[0][0]:g}, "
                     f"{curve.points[-1][1]:.4g} at step {curve.points[-1][0]:g}" for curve in shown)
    legend = "".join(f'<li><svg aria-hidden="true" viewBox="0 0 28 8"><path class="curve k{style}" d="M0 4H28"/></svg>'
                     f"{html.escape(curve.name)}</li>" for style, curve in drawn)
    return (f'<figure><figcaption><b>{html.escape(title)}</b>, {html.escape(unit)}</figcaption>\n'
            f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 400 230">'
            f'<title id="{name}-title">{html.escape(title)} over the steps</title>'
            f'<desc id="{name}-desc">{html.escape(said)}</desc>\n'
            + "\n".join(parts) + "</svg>\n" + (f"<ul>{legend}</ul>" if len(curves) > 1 else "") + "</figure>")


def sparkline(history: list[tuple[float, float]]) -> str:
    """(step, fraction kept) as a small line, from nothing kept to all."""
    last = max(1, history[-1][0])
    line = " ".join(f"{60 * step / last:.0f},{15 - 14 * kept:.1f}" for step, kept in thin(history, 50))
    return f'<svg aria-hidden="true" viewBox="0 0 60 16" preserveAspectRatio="none"><polyline points="{line}"/></svg>'
