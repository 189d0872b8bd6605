"""The version: the generation of the interface (OpenVZ 7), and whose it is."""

VERSION = "7.0.1-pyvz"
