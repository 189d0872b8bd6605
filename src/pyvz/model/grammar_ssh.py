"""VM_SSH_KEYS: public keys whose owners may log in as root, as in an authorized_keys file.

Stored in one line, joined by ";".  Options before a key ("command=...") are not taken over.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode
from typing import Final

from pyvz.errors import BadValue

_TYPE: Final = re.compile(r"(ssh|ecdsa-sha2|sk-ssh|sk-ecdsa-sha2)-[a-z0-9@.-]{1,60}")
_COMMENT: Final = re.compile(r"[^A-Za-z0-9@._-]+")
_MOST: Final = 32
_LONGEST: Final = 32 << 10  # characters of all together: they go to QEMU as one word


class SshKeys:
    """VM_SSH_KEYS."""

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the keys, each once; BadValue shows what is none."""
        lines = [line.strip() for line in re.split(r"[;\n]", text)]
        found = dict.fromkeys(_key(line) for line in lines if line and not line.startswith("#"))
        if len(found) > _MOST or sum(map(len, found)) > _LONGEST:
            raise BadValue(
                f"A virtual machine cannot have more than {_MOST} SSH keys of {_LONGEST} characters"
            )
        return tuple(found)

    def format(self, value: tuple[str, ...]) -> str:
        """Return the stored text."""
        return ";".join(value)


def _key(line: str) -> str:
    """Return a key in its usual form: type, base64, and what its owner calls it."""
    kind, _, rest = line.partition(" ")
    data, _, comment = rest.strip().partition(" ")
    if len(data) > _LONGEST or not _TYPE.fullmatch(kind) or _named(data) != kind:
        raise BadValue(
            f"'{line[:40]}' is not a public SSH key",
            hint="A file as ssh-keygen makes it: ~/.ssh/id_ed25519.pub",
        )
    comment = _COMMENT.sub("-", comment.strip())[:64].strip("-")
    return f"{kind} {data} {comment}".strip()


def _named(data: str) -> str:
    """Return the type that a key names itself (RFC 4253, section 6.6), "" when it is none."""
    try:
        blob = b64decode(data, validate=True)
        (length,) = struct.unpack_from(">I", blob)
        return blob[4 : 4 + length].decode("ascii") if len(blob) > 4 + length else ""
    except (ValueError, struct.error):
        return ""
