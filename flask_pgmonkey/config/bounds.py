"""How large a config may be, where parts of it are shared: written out, they can be without end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..errors import ConfigError

#: How deep a config may nest.
DEEPEST_NESTING = 100

#: How many values a config may come to, each part counted as often as it stands somewhere, and a
#: text for each hundred characters.
MOST_VALUES = 100_000


def parts_of(value: object) -> Iterable[object] | None:
    """What a mapping or a list holds; None for other values."""
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else None


def require_bounded(
    root: object,
    place: str,
    parts_of: Callable[[object], Iterable[object] | None] = parts_of,
) -> None:
    """Refuse what nests deeper, or comes to more, than a config may. Looks at each part once.

    :param place: how the error names *root*.
    :param parts_of: what a part holds; None where it holds nothing.
    :raises ConfigError: also for what contains itself.
    """
    # Of each part that is done: how many values, how many levels, and the parts, lest an id is
    # used again.
    done: dict[int, tuple[int, int, object]] = {}
    around: set[int] = set()
    pending: list[tuple[object, list[object] | None]] = [(root, None)]
    while pending:
        part, parts = pending.pop()
        if parts is not None:
            count = 1 + sum(_measured(one, done)[0] for one in parts)
            depth = 1 + max((_measured(one, done)[1] for one in parts), default=0)
            if depth > DEEPEST_NESTING:
                raise ConfigError(f"{place} nests deeper than {DEEPEST_NESTING} levels.")
            if count > MOST_VALUES:
                raise ConfigError(
                    f"{place} comes to more than {MOST_VALUES:,} values, if each is counted as "
                    "often as it stands somewhere; a config needs no more than some hundred."
                )
            around.discard(id(part))
            done[id(part)] = count, depth, part
        elif id(part) in around:
            raise ConfigError(f"{place} has a part that holds itself, which no config may.")
        elif id(part) not in done and (found := parts_of(part)) is not None:
            parts = list(found)
            around.add(id(part))
            pending.append((part, parts))
            pending += [(one, None) for one in parts]


def _measured(part: object, done: Mapping[int, tuple[int, int, object]]) -> tuple[int, int, object]:
    if id(part) in done:
        return done[id(part)]
    return 1 + (len(part) // 100 if isinstance(part, (str, bytes)) else 0), 0, part
