"""The partition table inside a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.errors import StorageError
from pyvz.image import gpt

MIB = 1 << 20


@pytest.mark.parametrize("start", [0, 4 * MIB])
def test_a_table_is_written_found_and_moved(tmp_path: Path, start: int) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        file.truncate(start + 64 * MIB)
        assert gpt.find(file.fileno(), start, 64 * MIB) is None
        made = gpt.write(file.fileno(), start, 64 * MIB)
        assert gpt.find(file.fileno(), start, 64 * MIB) == made
        assert (made.offset, made.size) == (MIB, 62 * MIB)
        file.truncate(start + 128 * MIB)
        grown = gpt.write(file.fileno(), start, 128 * MIB, made)
        assert grown == made._replace(size=126 * MIB)
        # The copy at the end says the same, with the places exchanged.
        file.seek(start + 128 * MIB - 512)
        assert file.read(8) == b"EFI PART"


def test_tables_that_we_cannot_keep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        file.truncate(64 * MIB)
        gpt.write(file.fileno(), 0, 64 * MIB)
        with pytest.raises(StorageError, match="too small"):
            gpt.write(file.fileno(), 0, MIB)
        with pytest.raises(StorageError, match="larger"):
            gpt.find(file.fileno(), 0, 32 * MIB)
        for at in (512 + 16, 512 + 40, 2 * 512 + 40):
            gpt.write(file.fileno(), 0, 64 * MIB)
            file.seek(at)
            file.write(b"\xff\xfe")
            file.flush()
            with pytest.raises(StorageError, match="damaged"):
                gpt.find(file.fileno(), 0, 64 * MIB)
