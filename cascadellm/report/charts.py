"""Charts as inline SVG, coloured by the page's style so that dark mode needs no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cascadellm.report.html import Html, element

__all__ = ["Series", "bars", "histogram", "lines", "nice_ticks", "number", "stacked"]

Format: TypeAlias = Callable[[float], str]
Point: TypeAlias = tuple[float, float]

_WIDTH, _HEIGHT = 620, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 26, 22, 44


def number(value: float) -> str:
    """Return a number as short as it can be read."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud of points.

    Attributes:
        name: Name in the key.
        points: (x, y), in drawing order.
        color: Colour index, 0 to 7.
        dots: Draw points without a line.
        dashed: Draw a dashed line, for references.
        band: (x, low, high) of an interval around the line.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dots: bool = False
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round values that cover [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / max(1, count)
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plotting area: data coordinates to SVG coordinates, and its axes."""

    xs: Sequence[float]
    ys: Sequence[float]
    height: int = _HEIGHT

    def x(self, value: float) -> float:
        low, high = self.xs[0], self.xs[-1]
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        room = self.height - _TOP - _BOTTOM
        return self.height - _BOTTOM - (value - low) / (high - low) * room

    def axes(self, x_label: str, x_format: Format, y_format: Format) -> list[Html]:
        parts = []
        floor = self.height - _BOTTOM
        for tick in self.ys:
            at = self.y(tick)
            parts.append(_line(_LEFT, at, _WIDTH - _RIGHT, at, "gridline"))
            parts.append(_text(_LEFT - 6, at + 4, y_format(tick), "tick end"))
        parts += [_text(self.x(t), floor + 16, x_format(t), "tick middle") for t in self.xs]
        parts.append(_line(_LEFT, floor, _WIDTH - _RIGHT, floor, "axis"))
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(_text(middle, self.height - 6, x_label, "label middle"))
        return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=kind
    )


def _text(x: float, y: float, text: str, kind: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind)


def _rect(x: float, y: float, width: float, height: float, color: int, tip: str) -> Html:
    return element(
        "rect",
        element("title", tip),
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{max(0.0, width):.1f}",
        height=f"{max(0.0, height):.1f}",
        class_=f"fill c{color % 8}",
    )


def _svg(parts: Sequence[Html], label: str, height: int = _HEIGHT) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label)


def _empty(label: str) -> Html:
    return element("p", f"No data for {label}.", class_="note")


def lines(
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    x_format: Format = number,
    y_format: Format = number,
    y_from_zero: bool = False,
    x_ticks: Sequence[float] = (),
    marker: float | None = None,
    marker_label: str = "",
    height: int = _HEIGHT,
) -> Html:
    """Return lines or dots in one frame, with a key.

    Args:
        series: What is drawn; points that are not finite are left out.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        x_format: Writes a tick of the horizontal axis.
        y_format: Writes a tick of the vertical axis.
        y_from_zero: Start the vertical axis at 0.
        x_ticks: Ticks of the horizontal axis, the first and last being its ends; round
            values around the points when not given.
        marker: Place of a vertical marker on the horizontal axis.
        marker_label: Its name.
        height: Height of the frame, of a width of 620.
    """
    kept = [
        (s, [p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])]) for s in series
    ]
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    ys += [edge for s, _ in kept for _, low, high in s.band for edge in (low, high)]
    if not xs:
        return _empty(y_label or "this chart")
    xs += [] if marker is None else [marker]
    ys += [0.0] if y_from_zero else []
    x_ticks = x_ticks or nice_ticks(min(xs), max(xs), 6)
    frame = _Frame(x_ticks, nice_ticks(min(ys), max(ys)), height)
    parts = frame.axes(x_label, x_format, y_format)
    for one, points in kept:
        parts += _draw(frame, one, points, x_format, y_format)
    if marker is not None:
        parts += _marker(frame, marker, marker_label or x_format(marker))
    keys = {s.name: s.color for s, points in kept if points and s.name}
    return Html(_axis_name(y_label) + _svg(parts, y_label, height) + _key(keys))


def _draw(
    frame: _Frame, one: Series, points: Sequence[Point], x_format: Format, y_format: Format
) -> list[Html]:
    color = f"c{one.color % 8}"
    parts = []
    if one.band:
        upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in one.band]
        lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(one.band)]
        parts.append(element("polygon", points=" ".join(upper + lower), class_=f"band {color}"))
    if not one.dots:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        kind = f"line {color}{' dashed' if one.dashed else ''}"
        parts.append(element("polyline", points=path, class_=kind))
    # a point under every line vertex would hide dense lines, yet a tip is wanted on each
    radius = 3.2 if one.dots else 2.4
    if one.dots and len(points) == 1:
        # a single point is what the picture is about
        radius, (x, y) = 6.0, points[0]
        below = _text(frame.x(x) + 9, frame.y(y) + 18, one.name, "mark")
        parts.append(below)
    if one.dots or len(points) <= 60:
        for x, y in points:
            tip = element("title", f"{one.name}: {x_format(x)}, {y_format(y)}")
            parts.append(
                element(
                    "circle",
                    tip,
                    cx=f"{frame.x(x):.1f}",
                    cy=f"{frame.y(y):.1f}",
                    r=radius,
                    class_=f"dot {color}",
                )
            )
    return parts


def _marker(frame: _Frame, value: float, label: str) -> list[Html]:
    at = frame.x(value)
    near_right = at > _WIDTH * 0.7
    return [
        _line(at, _TOP, at, frame.height - _BOTTOM, "marker"),
        _text(
            at + (-6 if near_right else 6), _TOP - 7, label, f"mark {'end' if near_right else ''}"
        ),
    ]


def _axis_name(label: str) -> Html:
    return element("div", label, class_="axis-name") if label else Html("")


def _key(names: Mapping[str, int]) -> Html:
    keys = (
        element("span", element("i", class_=f"swatch c{color % 8}"), name, class_="key")
        for name, color in names.items()
    )
    return element("div", *keys, class_="legend") if names else Html("")


def bars(rows: Sequence[tuple[str, float, int]], *, format: Format = number) -> Html:  # noqa: A002
    """Return horizontal bars.

    Args:
        rows: (label, value, colour index) each.
        format: Writes a value.
    """
    if not rows:
        return _empty("this chart")
    top = max([value for _, value, _ in rows], default=0.0) or 1.0
    parts = []
    left, height = 150, 30
    for place, (label, value, color) in enumerate(rows):
        y = place * height + 6
        width = value / top * (_WIDTH - left - 90)
        parts.append(_text(left - 8, y + 15, _shortened(label, 20), "tick end"))
        parts.append(_rect(left, y, max(width, 1.0), 20, color, f"{label}: {format(value)}"))
        parts.append(_text(left + width + 8, y + 15, format(value), "tick"))
    return _svg(parts, "bars", height=len(rows) * height + 8)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def stacked(
    columns: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    *,
    x_label: str = "",
    y_label: str = "",
) -> Html:
    """Return columns of shares that add up to one.

    Args:
        columns: (label, one value per name) each; scaled to shares.
        names: What the values are; their place is their colour.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
    """
    if not columns:
        return _empty(y_label or "this chart")
    frame = _Frame([0.0, float(len(columns))], [0.0, 0.25, 0.5, 0.75, 1.0])
    parts = frame.axes(x_label, lambda _: "", lambda v: f"{v:.0%}")
    wanted = max(1, math.ceil(len(columns) / 6))
    for place, (label, values) in enumerate(columns):
        total = sum(values) or 1.0
        below = 0.0
        left, right = frame.x(place), frame.x(place + 1)
        for color, value in enumerate(values):
            share = value / total
            top = frame.y(below + share)
            tip = f"{label}: {names[color]} {share:.0%} ({value:g})"
            parts.append(_rect(left + 1, top, right - left - 2, frame.y(below) - top, color, tip))
            below += share
        if place % wanted == 0:
            parts.append(_text((left + right) / 2, _HEIGHT - _BOTTOM + 16, label, "tick middle"))
    keys = {name: color for color, name in enumerate(names)}
    return Html(_axis_name(y_label) + _svg(parts, y_label) + _key(keys))


def histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    threshold: float | None = None,
    bins: int = 28,
    x_label: str = "",
    colors: Mapping[str, int] | None = None,
) -> Html:
    """Return stacked counts of scores, with the threshold as a marker.

    Args:
        groups: Name to values, e.g. accepted and deferred; only finite values are drawn.
        threshold: Drawn where it is finite.
        bins: Number of columns.
        x_label: Name and unit of the score.
        colors: Name to colour index; by order when not given.
    """
    finite = {name: [v for v in vs if math.isfinite(v)] for name, vs in groups.items()}
    every = [v for values in finite.values() for v in values]
    if not every:
        return _empty(x_label or "this score")
    marked = threshold is not None and math.isfinite(threshold)
    edges = nice_ticks(*_range(every, threshold if marked else None), 6)
    width = (edges[-1] - edges[0]) / bins
    low = edges[0]
    if marked and threshold is not None:
        # a column must not stand on both sides of the threshold
        low = threshold - math.ceil((threshold - edges[0]) / width) * width
        bins += 1
    counts = {name: [0] * bins for name in finite}
    for name, values in finite.items():
        for value in values:
            counts[name][min(bins - 1, int((value - low) / width + 1e-9))] += 1
    tallest = max(sum(column) for column in zip(*counts.values(), strict=True))
    frame = _Frame(edges, [t for t in nice_ticks(0, tallest, 4) if t == int(t)] or [0.0, 1.0])
    parts = frame.axes(x_label, number, number)
    palette = colors or {name: i for i, name in enumerate(groups)}
    for place in range(bins):
        below = 0
        start, end = low + place * width, low + (place + 1) * width
        left, right = frame.x(max(start, edges[0])), frame.x(min(end, edges[-1]))
        for name in finite:
            count = counts[name][place]
            if not count:
                continue
            top = frame.y(below + count)
            tip = f"{name}, {number(start)} to {number(end)}: {count}"
            parts.append(
                _rect(left + 0.5, top, right - left - 1, frame.y(below) - top, palette[name], tip)
            )
            below += count
    if marked and threshold is not None:
        parts += _marker(frame, threshold, f"threshold {number(threshold)}")
    keys = {name: palette[name] for name, values in finite.items() if values}
    return Html(_axis_name("calls") + _svg(parts, x_label) + _key(keys))


def _range(values: Sequence[float], threshold: float | None) -> tuple[float, float]:
    seen = [*values, *([] if threshold is None else [threshold])]
    return min(seen), max(seen)
