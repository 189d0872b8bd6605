"""What a user and a password inside a container may look like: values only."""

from __future__ import annotations

import re
from typing import Final

from pyvz.errors import BadValue
from pyvz.model.secret import Secret

# shadow-utils' own rule (lib/chkname.c), and no dash at the beginning: it would be an option.
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,254}\$?")
# crypt(5): "$id$..." or the 13 characters of the oldest method; "!" and "*" lock the account.
_CRYPTED = re.compile(r"[!*]?[$./A-Za-z0-9,=_+-]*")
_MAX_LENGTH: Final = 511  # PAM_MAX_RESP_SIZE is 512 (pam_appl)


def check_user(user: str) -> None:
    """Raise BadValue when nobody may be called `user`."""
    if not _USER.fullmatch(user) or user in {".", ".."}:
        raise BadValue(f"'{user}' is not a valid user name")


def check_password(password: Secret, *, crypted: bool) -> None:
    """Raise BadValue for a password that cannot be handed over; never shows it."""
    text = password.reveal()
    if not text:
        raise BadValue("The password is empty")
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_LENGTH:
        raise BadValue(f"The password is longer than {_MAX_LENGTH} bytes")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise BadValue("The password holds a control character")
    if crypted and not _CRYPTED.fullmatch(text):
        raise BadValue("The password is not a hash as crypt(5) makes it")
