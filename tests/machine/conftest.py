"""The shared images."""

from images import debian_tar
from tinyguest import tiny_drivers_iso

__all__ = ["debian_tar", "tiny_drivers_iso"]
