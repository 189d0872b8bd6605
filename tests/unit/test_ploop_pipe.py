"""What `ploop copy` sends: an image that cannot be read is not one with a hole."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest

from pyvz.cli import ploop_pipe


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO])
def test_only_the_end_of_the_data_is_a_hole(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with tempfile.TemporaryFile() as image, tempfile.TemporaryFile() as out:
        image.truncate(1 << 20)
        monkeypatch.setattr(os, "lseek", fail)
        if number == errno.ENXIO:
            ploop_pipe.send(image.fileno(), out.fileno())
            return
        with pytest.raises(OSError, match="Input/output"):
            ploop_pipe.send(image.fileno(), out.fileno())
