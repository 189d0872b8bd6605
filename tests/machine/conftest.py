"""The shared images."""

from images import debian_tar

__all__ = ["debian_tar"]
