"""Where metrics are served, and their names."""

from __future__ import annotations

import re

import pytest

from pyvz.errors import BadValue
from pyvz.model.endpoint import Endpoint, endpoint
from pyvz.operations.metrics import COUNTER, FIGURES


@pytest.mark.parametrize("text", ["", "no", "off", " "])
def test_off_by_default(text: str) -> None:
    assert endpoint("METRICS", text) is None


def test_a_port_means_loopback() -> None:
    assert endpoint("METRICS", "9737") == Endpoint("127.0.0.1", 9737)
    assert endpoint("METRICS", "192.0.2.1:80") == Endpoint("192.0.2.1", 80)
    assert endpoint("METRICS", "[::1]:9737") == Endpoint("::1", 9737)
    assert endpoint("LIBVIRT_TLS", "yes", port=16514) == Endpoint("127.0.0.1", 16514)


@pytest.mark.parametrize("text", ["yes", "localhost:9737", "0x1", "70000", "-1", "1.2.3.4:"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="METRICS"):
        endpoint("METRICS", text)


def test_names_follow_the_rules_of_prometheus() -> None:
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    for figure in FIGURES:
        assert re.fullmatch(r"[a-z][a-z_]*", figure.name)
        assert figure.name.endswith("_total") == (figure.kind == COUNTER)
        assert figure.help.endswith(".")
