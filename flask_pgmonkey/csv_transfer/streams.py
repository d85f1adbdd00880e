"""Bytes in and out: files, streams, compression, encodings."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from ..files import BLOCK_SIZE, new_file, open_for_reading
from .errors import CSVTransferError

Progress = Callable[[int, "int | None", int], None]
"""Is called with the bytes done, the bytes in all if known, and the lines or rows done."""

PRIVATE = 0o600
"""The mode of a file with rows that came from a stream."""

GZIP_ENDING = ".gz"
ZSTD_ENDINGS = (".zst", ".zstd")

NO_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")
"""What Python calls encodings, and no file is written in."""


def without_compression(path: Path) -> Path:
    """*path* without the ending that says how it is compressed."""
    return path.with_suffix("") if path.suffix in (GZIP_ENDING, *ZSTD_ENDINGS) else path


def check_encoding(encoding: str) -> str:
    """*encoding* itself.

    :raises LookupError: if Python knows no text encoding of that name, or it is none of files.
    """
    try:
        "".encode(encoding)
    except ValueError as error:  # The name itself cannot be looked up, or it is "undefined".
        raise LookupError(f"unknown encoding: {encoding}") from error
    if codecs.lookup(encoding).name.replace("_", "-") in NO_FILES:
        raise LookupError(f"{encoding} is an encoding of names or literals, not of files")
    return encoding


class Source:
    """The bytes of a CSV file or stream, decompressed."""

    def __init__(
        self,
        name: str,
        raw: BinaryIO,
        content: BinaryIO,
        size: int | None,
        damage: tuple[type[Exception], ...] = (),
        mode: int = PRIVATE,
    ) -> None:
        self.name = name
        """How errors call it."""
        self.size = size
        """The bytes on disk, compressed or not; None for a stream."""
        self.mode = mode
        """Who may read and write the file, and so what is made of its rows."""
        self._raw = raw
        self._content = content
        self._damage = damage

    @property
    def position(self) -> int:
        """How many of :attr:`size` bytes were read."""
        return self._raw.tell() if self.size is not None else 0

    def read(self) -> bytes:
        """The next block; nothing at the end.

        :raises CSVTransferError: if the compressed file is damaged.
        """
        try:
            return self._content.read(BLOCK_SIZE)
        except self._damage as error:
            raise CSVTransferError(
                f"{self.name}: the compressed file is damaged or cut off: {error}", file=self.name
            ) from error


@contextmanager
def open_source(source: str | os.PathLike[str] | BinaryIO) -> Iterator[Source]:
    """The bytes of a path, decompressed by its ending, or of an open stream, which stays open."""
    if not isinstance(source, (str, os.PathLike)):
        yield Source(getattr(source, "name", None) or "the stream", source, source, None)
        return
    path = Path(source)
    with ExitStack() as stack:
        raw = stack.enter_context(open_for_reading(path))
        content: BinaryIO = raw
        damage: tuple[type[Exception], ...] = ()
        if path.suffix == GZIP_ENDING:
            content = cast(BinaryIO, stack.enter_context(gzip.open(raw)))
            damage = (EOFError, zlib.error, gzip.BadGzipFile)
        elif path.suffix in ZSTD_ENDINGS:
            content = stack.enter_context(_open_zstd(raw, "rb"))
            damage = (EOFError, _zstd().ZstdError)
        status = os.fstat(raw.fileno())
        if _is_no_source(raw, status):
            raise CSVTransferError(f"{path}: is a device, not a file", file=str(path))
        is_file = stat.S_ISREG(status.st_mode)
        mode = status.st_mode & 0o666 if is_file else PRIVATE
        yield Source(str(path), raw, content, status.st_size if is_file else None, damage, mode)


def _is_no_source(raw: BinaryIO, status: os.stat_result) -> bool:
    """Whether it is a disk, or a device that never ends, as /dev/zero."""
    if stat.S_ISCHR(status.st_mode):
        return not raw.isatty() and status.st_rdev != os.stat(os.devnull).st_rdev
    return stat.S_ISBLK(status.st_mode)


def utf8_blocks(source: Source, first: bytes, encoding: str) -> Iterator[bytes]:
    """The text of *source* as blocks of UTF-8, without a byte order mark.

    What is UTF-8 already passes unread; the server checks it.

    :param first: the first block, read before.
    :raises CSVTransferError: at bytes that are not of *encoding*, with their line.
    """
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        yield first.removeprefix(codecs.BOM_UTF8)
        while block := source.read():
            yield block
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    block, is_first = first, True
    while True:
        state = decoder.getstate()
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):
                raise CSVTransferError(
                    f"{source.name}, line {line}: the text is not {encoding} ({error}); name the"
                    " file's encoding with --encoding",
                    file=source.name,
                    line=line,
                ) from error
            # The state has the byte order and the start of a character, as the error's object has.
            lenient = codecs.getincrementaldecoder(encoding)("ignore")
            lenient.setstate(state)
            good = ""
            with suppress(UnicodeError):  # Where the mark is wrong too.
                good = lenient.decode(block[: max(0, error.start - len(state[0]))])
            wrong = error.object[error.start : error.end].hex(" ")
            line += good.count("\n") or good.count("\r")
            raise CSVTransferError(
                f"{source.name}, line {line}: the bytes {wrong} are not {encoding}"
                f" ({error.reason}); name the file's encoding with --encoding",
                file=source.name,
                line=line,
            ) from error
        if is_first and text:
            text, is_first = text.removeprefix("\ufeff"), False
        line += text.count("\n") or text.count("\r")
        yield text.encode()
        if not block:
            return
        block = source.read()


@contextmanager
def open_target(target: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    """A path to write to, compressed by its ending, or an open stream, which stays open.

    A file appears under its name complete or not at all.
    """
    if not isinstance(target, (str, os.PathLike)):
        yield target
        target.flush()
        return
    suffix = Path(target).suffix
    with ExitStack() as stack:
        file = stack.enter_context(new_file(target))
        if suffix == GZIP_ENDING:
            packer = cast(io.RawIOBase, stack.enter_context(gzip.GzipFile("", "wb", 6, file)))
        elif suffix in ZSTD_ENDINGS:
            packer = cast(io.RawIOBase, stack.enter_context(_open_zstd(file, "wb")))
        else:
            yield file
            return
        buffer = io.BufferedWriter(packer, BLOCK_SIZE)
        yield buffer
        buffer.flush()


def _open_zstd(file: BinaryIO, mode: Literal["rb", "wb"]) -> BinaryIO:
    return cast(BinaryIO, _zstd().ZstdFile(file, mode))


def _zstd() -> Any:
    try:
        return import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    except ImportError as error:
        raise CSVTransferError(
            'zstd needs a package of its own: pip install "flask-pgmonkey[zstd]"'
        ) from error
