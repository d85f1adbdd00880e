"""Files in a folder that a hostile neighbour may write in too."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from flask_pgmonkey.files import new_file, open_for_reading, open_without_waiting, our_file

from .servers import make_open_folder

only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
NEIGHBOUR = "nobody"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which every user may write."""
    folder = make_open_folder()
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o777)
    yield folder / "shared"
    subprocess.run(["rm", "-rf", folder], check=True)


# Becomes the neighbour when Python has started, which he may not reach.
AS_NEIGHBOUR = f"""
import os, pwd, sys
uid = pwd.getpwnam("{NEIGHBOUR}").pw_uid
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.umask(0)
"""


@pytest.fixture
def plant() -> Callable[[str], None]:
    """Runs a line of Python as the neighbour."""

    def run(line: str) -> None:
        subprocess.run([sys.executable, "-c", AS_NEIGHBOUR + line], check=True)

    return run


@only_as_root
@pytest.mark.parametrize("replace", [True, False])
def test_a_neighbours_link_leads_nowhere(
    shared: Path, plant: Callable[[str], None], replace: bool
) -> None:
    treasure = shared.parent / "treasure"
    treasure.write_text("ours")
    plant(f"os.symlink('{treasure}', '{shared}/report')")
    with pytest.raises(OSError) as caught, new_file(shared / "report", replace=replace) as file:
        file.write(b"false")
    assert treasure.read_text() == "ours"
    assert sorted(path.name for path in shared.iterdir()) == ["report"]
    if replace:
        assert caught.value.filename == str(shared / "report")
        assert f"belongs to {NEIGHBOUR}, in a folder where others may write" in str(caught.value)
        assert "name what it leads to instead" in str(caught.value)
        with new_file(treasure) as file:
            file.write(b"on purpose")
        assert treasure.read_text() == "on purpose"


@only_as_root
def test_a_folder_on_the_way_is_no_neighbours_link_either(
    shared: Path, plant: Callable[[str], None]
) -> None:
    treasure = shared.parent / "treasure"
    treasure.mkdir()
    plant(f"os.symlink('{treasure}', '{shared}/reports')")
    for write in (new_file, our_file):
        with pytest.raises(PermissionError, match=NEIGHBOUR), write(shared / "reports" / "x"):
            pass
    with pytest.raises(PermissionError, match=NEIGHBOUR):
        open_for_reading(shared / "reports" / "x")
    assert list(treasure.iterdir()) == []


@only_as_root
def test_a_file_that_we_name_ourselves_takes_the_place_of_any_link(
    shared: Path, plant: Callable[[str], None]
) -> None:
    treasure = shared.parent / "treasure"
    treasure.write_text("ours")
    plant(f"os.symlink('{treasure}', '{shared}/report')")
    (shared / "mine").symlink_to(treasure)
    for name in ("report", "mine"):
        with our_file(shared / name, mode=0o600) as file:
            file.write(b"new")
        assert not (shared / name).is_symlink()
        assert (shared / name).read_bytes() == b"new"
    assert treasure.read_text() == "ours"


@only_as_root
def test_a_neighbours_pipe_gets_nothing(shared: Path, plant: Callable[[str], None]) -> None:
    plant(f"os.mkfifo('{shared}/report', 0o666)")
    reader = os.open(shared / "report", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(PermissionError, match=f"belongs to {NEIGHBOUR}"):
            with new_file(shared / "report") as file:
                file.write(b"secret")
        with pytest.raises(PermissionError, match=f"belongs to {NEIGHBOUR}"):
            open_for_reading(shared / "report")
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
    with our_file(shared / "report") as file:
        file.write(b"secret")
    assert (shared / "report").is_file()


@only_as_root
def test_a_neighbours_file_opens_nothing(shared: Path, plant: Callable[[str], None]) -> None:
    plant(f"os.close(os.open('{shared}/report', os.O_CREAT | os.O_WRONLY, 0o666))")
    assert stat.S_IMODE((shared / "report").stat().st_mode) == 0o666
    with new_file(shared / "report") as file:
        file.write(b"secret")
    status = (shared / "report").stat()
    assert (status.st_uid, status.st_mode & 0o022) == (0, 0)


@contextmanager
def under_attack(program: str, *arguments: Path) -> Iterator[None]:
    command = [sys.executable, "-c", AS_NEIGHBOUR + program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as attack:
        assert attack.stdout is not None
        attack.stdout.readline()
        try:
            yield
        finally:
            attack.kill()


# Swaps a folder for a link to another, and back, for ever.
SWAP = """
shared, treasure = sys.argv[1:]
print("ready", flush=True)
while True:
    os.rename(f"{shared}/reports", f"{shared}/away")
    os.symlink(treasure, f"{shared}/reports")
    os.unlink(f"{shared}/reports")
    os.rename(f"{shared}/away", f"{shared}/reports")
"""


@only_as_root
def test_a_neighbour_who_swaps_folders_meanwhile_wins_nothing(
    shared: Path, plant: Callable[[str], None]
) -> None:
    treasure = shared.parent / "treasure"
    treasure.mkdir()
    plant(f"os.mkdir('{shared}/reports', 0o777)")
    refused = written = 0
    with under_attack(SWAP, shared, treasure):
        for number in range(20_000):
            if number > 300 and refused and written:
                break
            try:
                with new_file(shared / "reports" / f"{number}") as file:
                    file.write(b"x")
                written += 1
            except OSError:
                refused += 1
            assert list(treasure.iterdir()) == []
    assert refused
    assert written


# Has by turns his own file, and a link to ours, under the name that we read.
EXCHANGE = """
shared, treasure = sys.argv[1:]
os.chdir(shared)
os.close(os.open("file", os.O_CREAT | os.O_WRONLY))
os.symlink(treasure, "link")
os.mkfifo("pipe")
print("ready", flush=True)
while True:
    for name in ("file", "link", "file", "pipe"):
        os.rename(name, "orders.csv")
        os.rename("orders.csv", name)
"""


def open_small(path: Path) -> BinaryIO:
    return open(path, "rb", buffering=0, opener=open_without_waiting)


@only_as_root
@pytest.mark.parametrize("open_", [open_for_reading, open_small])
def test_a_neighbour_who_swaps_files_meanwhile_has_nothing_else_read(
    shared: Path, open_: Callable[[Path], BinaryIO]
) -> None:
    treasure = shared.parent / "treasure"
    treasure.write_text("ours")
    read = 0
    with under_attack(EXCHANGE, shared, treasure):
        for _ in range(20_000):
            with suppress(OSError), open_(shared / "orders.csv") as file:
                assert file.read() == b""
                read += 1
    assert read


# Puts a link to our file in the place of what is not complete yet.
REPLACE_PARTIAL = """
shared, treasure = sys.argv[1:]
os.chdir(shared)
print("ready", flush=True)
while True:
    for name in os.listdir("."):
        if name.endswith(".partial"):
            try:
                os.rename(name, "away")
                os.symlink(treasure, name)
            except OSError:
                pass
"""


@only_as_root
@pytest.mark.parametrize("replace", [True, False])
def test_a_neighbour_who_replaces_what_is_not_complete_gets_no_name_for_our_file(
    shared: Path, replace: bool
) -> None:
    treasure = shared.parent / "treasure"
    treasure.write_text("ours")
    with under_attack(REPLACE_PARTIAL, shared, treasure):
        for number in range(300):
            with suppress(OSError), new_file(shared / f"{number}", replace=replace) as file:
                file.write(b"x")
    assert (treasure.read_text(), treasure.stat().st_nlink) == ("ours", 1)


@pytest.mark.parametrize("there", [None, 0o600, 0o640])
def test_until_the_end_nobody_else_may_read(tmp_path: Path, there: int | None) -> None:
    path = tmp_path / "report"
    if there is not None:
        path.touch()
        path.chmod(there)
    before = os.umask(0o027)
    try:
        with new_file(path) as file:
            file.write(b"secret")
            file.flush()
            (partial,) = tmp_path.glob(".*.partial")
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (0o640 if there is None else there)


def test_our_own_links_lead_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a/../file")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with new_file(tmp_path / "a" / "up" / "link") as file:
        file.write(b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"1"
    with open_for_reading(tmp_path / "link") as opened:
        assert opened.read(9) == b"1"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), new_file(tmp_path / "loop"):
        pass


def test_what_exists_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report"
    with new_file(path, replace=False) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError), new_file(path, replace=False):
        pass
    other = tmp_path / "raced"
    with pytest.raises(FileExistsError), new_file(other, replace=False) as file:
        other.write_bytes(b"another process was faster")
    assert other.read_bytes() == b"another process was faster"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["raced", "report"]


def test_the_longest_name_will_do(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    with new_file(path) as file:
        file.write(b"x")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


KILLED = """
import os, sys
from flask_pgmonkey.files import new_file
with new_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""


def test_the_next_file_of_a_name_removes_what_a_kill_has_left(tmp_path: Path) -> None:
    path = tmp_path / "report"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    (left,) = tmp_path.iterdir()
    other = tmp_path / f".{'0' * 8}.other.partial"
    other.touch()
    with new_file(path) as slow:
        with new_file(path) as fast:
            assert not left.exists()
            fast.write(b"fast")
        slow.write(b"slow")
    assert path.read_bytes() == b"slow"
    assert sorted(each.name for each in tmp_path.iterdir()) == [other.name, "report"]
