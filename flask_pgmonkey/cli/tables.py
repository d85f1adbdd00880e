"""How the rows of a table stand in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

GAP = 2
INDENT = "  "
MOST_LINES = 3
"""Of a row in columns: a higher one is easier to read as a block."""


def plain(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each of *rows* as one line, in columns."""
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    return (_line(row, widths) for row in rows)


def laid_out(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[tuple[str, bool]]:
    """The lines of a table in *width* columns, each with whether it is a head.

    Words stay whole: cells are wrapped between them. Rows whose words are too long for that, or
    that would be too high, are blocks; where that are most, all are.
    """
    if not rows:
        yield from ((line, True) for line in wrapped((" " * GAP).join(headers), width))
        return
    in_columns = _rows_that_fit(headers, rows, width)
    while True:
        widths = _widths([headers, *(rows[index] for index in in_columns)], width)
        too_high = {index for index in in_columns if _height(rows[index], widths) > MOST_LINES}
        if not too_high:
            break
        in_columns -= too_high
    if 2 * len(in_columns) <= len(rows):
        in_columns = set()
    if in_columns:
        for line in _in_columns(headers, widths):
            yield line, True
    for index, row in enumerate(rows):
        if index in in_columns:
            for line in _in_columns(row, widths):
                yield line, False
        else:
            yield from _block(headers, row, width)


def columns_of(text: str) -> int:
    """How many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # what most tables do without

    return cell_len(text)


def wrapped(text: str, width: int) -> list[str]:
    """The lines of *text*, broken between words alone: a longer word is a longer line.

    What fits stays as it is, runs of spaces included.
    """
    if columns_of(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split():
        if lines and columns_of(lines[-1]) + 1 + columns_of(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _rows_that_fit(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> set[int]:
    """The indexes of as many rows as fit below each other."""
    longest = [[*map(_longest_word, row)] for row in rows]
    narrow_first = sorted(range(len(rows)), key=lambda index: sum(longest[index]))
    room = width - GAP * (len(headers) - 1)
    least = [*map(_longest_word, headers)]
    fitting: set[int] = set()
    for index in narrow_first:
        least = [*map(max, least, longest[index])]
        if sum(least) > room:
            break
        fitting.add(index)
    return fitting


def _longest_word(text: str) -> int:
    return max(map(columns_of, text.split()), default=0)


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """As wide as the longest words of the columns at least, and as their texts at most."""
    columns = [*zip(*rows, strict=True)]
    widths = [max(map(_longest_word, column)) for column in columns]
    wanted = [max(map(columns_of, column)) for column in columns]
    rest = width - GAP * (len(columns) - 1) - sum(widths)
    # Who wants least is served first, so that few columns have cells of several lines.
    for index in sorted(range(len(columns)), key=lambda each: wanted[each] - widths[each]):
        more = max(0, min(rest, wanted[index] - widths[index]))
        widths[index] += more
        rest -= more
    return widths


def _height(row: Sequence[str], widths: Sequence[int]) -> int:
    return max(len(wrapped(cell, width)) for cell, width in zip(row, widths, strict=True))


def _in_columns(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, cells), default=0)):
        yield _line([cell[number] if number < len(cell) else "" for cell in cells], widths)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)
    )
    return (" " * GAP).join(padded).rstrip()


def _block(headers: Sequence[str], row: Sequence[str], width: int) -> Iterator[tuple[str, bool]]:
    """The first cell, and below it the others that hold something, each after its name."""
    for line in wrapped(row[0], width):
        yield line, True
    named = max(map(columns_of, headers[1:]), default=0)
    deeper = " " * (len(INDENT) + named + GAP)
    for name, cell in zip(headers[1:], row[1:], strict=True):
        if not cell:
            continue
        first = f"{INDENT}{name}{' ' * (named - columns_of(name) + GAP)}"
        if len(deeper) + _longest_word(cell) > width:  # below its name it may have the room
            yield f"{INDENT}{name}", False
            for line in wrapped(cell, width - 2 * len(INDENT)):
                yield f"{2 * INDENT}{line}", False
            continue
        lines = wrapped(cell, width - len(deeper))
        yield f"{first}{lines[0]}", False
        for line in lines[1:]:
            yield f"{deeper}{line}", False
