"""Small pictures as inline SVG: sizes are attributes, since a strict CSP lets no style through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from .recording import SAMPLES, SECONDS_BETWEEN_SAMPLES, RequestRecord, Sample

_WIDTH, _HEIGHT = 600, 72
_SPAN = SAMPLES * SECONDS_BETWEEN_SAMPLES


def bar(share: float, kind: str = "") -> Markup:
    """A bar as long as a *share* of its place, which is between 0 and 1."""
    width = max(0.0, min(1.0, share)) * 100
    return Markup(
        '<svg class="bar {}" aria-hidden="true"><rect width="{}%" height="100%"/></svg>'
    ).format(kind, f"{width:.1f}")


def span(begin: float, length: float, kind: str = "") -> Markup:
    """A bar that stands somewhere on a line of length 1."""
    return segments([(begin, length, kind)])


def both(usual: float, longest: float) -> Markup:
    """A bar as long as *usual*, and a fainter one behind it as long as *longest*."""
    return segments([(0, longest, "quiet"), (0, usual, "")])


def segments(parts: Iterable[tuple[float, float, str]]) -> Markup:
    """Bars on a line of length 1, each with where it begins, its length and its kind."""
    rects = Markup("").join(
        Markup('<rect class="{}" x="{}%" width="{}%" height="100%"/>').format(
            kind,
            f"{max(0.0, min(1.0, begin)) * 100:.2f}",
            f"{max(0.004, min(1.0, length)) * 100:.2f}",
        )
        for begin, length, kind in parts
    )
    return Markup('<svg class="strip" aria-hidden="true">{}</svg>').format(rects)


def request_strip(request: RequestRecord) -> Markup:
    """When in a request its queries ran."""
    began, whole = request.began, max(request.ended - request.began, 1e-6)
    return segments(
        (
            (query.started_at - began) / whole,
            query.duration / whole,
            "bad" if query.error else "quiet" if query.kind == "command" else "",
        )
        for _, query in request.entries[:500]
    )


def pool_chart(samples: Sequence[Sample], pool: str, now: float) -> Markup:
    """How many connections of a pool were borrowed, and how many borrowers waited, in the last
    minutes."""
    found = [(each.at, each.pools[pool]) for each in samples if pool in each.pools]
    found = [(at, stood) for at, stood in found if at > now - _SPAN]
    if not found:
        return Markup('<svg class="chart" viewBox="0 0 {} {}"></svg>').format(_WIDTH, _HEIGHT)
    most = max(stood.max_size for _, stood in found)
    most_waiting = max(stood.pending for _, stood in found)
    top = max(most, 1) * 1.08

    def x(at: float) -> float:
        return round(_WIDTH * (1 - (now - at) / _SPAN), 1)

    def y(number: float) -> float:
        return round(_HEIGHT * (1 - number / top), 1)

    def area(numbers: Iterable[tuple[float, float]]) -> str:
        points = list(numbers)
        steps = [f"M{x(points[0][0])} {_HEIGHT}"]
        for (at, number), (until, _) in zip(points, [*points[1:], (now, 0)], strict=True):
            if until - at > 5 * SECONDS_BETWEEN_SAMPLES:  # nobody looked: the machine slept
                until = at + SECONDS_BETWEEN_SAMPLES
                steps.append(f"V{y(number)}H{x(until)}V{_HEIGHT}")
            else:
                steps.append(f"V{y(number)}H{x(until)}")
        return f"{''.join(steps)}V{_HEIGHT}Z"

    waiting = Markup("").join(
        Markup('<rect class="waiting" x="{}" y="0" width="{}" height="{}"/>').format(
            x(at),
            round(_WIDTH / SAMPLES, 1),
            round(_HEIGHT * max(0.08, stood.pending / max(most_waiting, 1) * 0.5), 1),
        )
        for at, stood in found
        if stood.pending
    )
    text = (
        f"{pool}: {found[-1][1].used} of {most} connections are borrowed; of the last minutes the"
        f" most were {max(stood.used for _, stood in found)}, and {most_waiting} waited"
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img"'
        ' aria-label="{text}">'
        '<path class="open" d="{open}"/><path class="used" d="{used}"/>'
        '<line class="most" x1="0" x2="{w}" y1="{y}" y2="{y}"/>{waiting}</svg>'
    ).format(
        w=_WIDTH,
        h=_HEIGHT,
        text=escape(text),
        open=area((at, stood.used + stood.idle) for at, stood in found),
        used=area((at, stood.used) for at, stood in found),
        y=y(most),
        waiting=waiting,
    )
