"""From a configuration to a specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.container import capability, devices
from pyvz.container.spec import environment, from_config
from pyvz.errors import BadValue
from pyvz.linux.features import Feature, Features
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.limits import DeviceRule, IdRange

UUID = "5e0b3f4e-6cc7-4f3c-8d6a-0d5ba37b4f0f"
YES = Feature(value=True, reason="")
FEATURES = Features(**{name: YES for name in Features._fields if name != "idmapped"}, idmapped={})


def make(tmp_path: Path, **values: str):
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/init").write_text("")
    env = Environment(UUID, UUID, "my ct_1", Kind.CT, tmp_path / "private")
    config = Config.parse(values)
    return from_config(env, config, root=tmp_path, ids=IdRange(524288), features=FEATURES, cpus=4)


@pytest.mark.usefixtures("real_kernel")
class TestFromConfig:
    def test_defaults(self, tmp_path: Path) -> None:
        spec = make(tmp_path)
        assert spec.hostname == "my-ct-1"
        assert spec.argv == ("/sbin/init",)
        assert spec.caps == capability.DEFAULT
        assert not spec.nesting
        assert dict(spec.env)["container_uuid"] == UUID

    def test_security(self, tmp_path: Path) -> None:
        spec = make(
            tmp_path, CAPABILITY="SYS_TIME:on NET_RAW:off VE_ADMIN:on", FEATURES="nesting:on"
        )
        assert "sys_time" in spec.caps
        assert "net_raw" not in spec.caps
        assert spec.nesting

    def test_binds_devices_hostname_environment(self, tmp_path: Path) -> None:
        spec = make(
            tmp_path,
            HOSTNAME="www.example.org",
            BINDMOUNT="/srv:/mnt/srv,ro,nosuid /data",
            DEVICES="c:10:229:rw b:7:all:r",
            DEVNODES="null:rw",
            VE_ENVIRONMENT="A=b container=other",
        )
        assert spec.hostname == "www.example.org"
        first, second = spec.binds
        assert (first.source, first.target, first.read_only) == (Path("/srv"), "/mnt/srv", True)
        assert first.attributes == ("nosuid",)
        assert second.source == tmp_path / "private/mnt/data"
        assert spec.device_rules == (DeviceRule("c", 10, 229, "rw"), DeviceRule("b", 7, None, "r"))
        assert spec.device_nodes[0].path == "/dev/null"
        assert dict(spec.env)["A"] == "b"
        assert dict(spec.env)["container"] == "other"


def test_environment_has_what_systemd_wants() -> None:
    assert dict(environment("u")).keys() >= {"PATH", "TERM", "container", "container_uuid"}


def test_device_rules_deny_by_default_and_never_repeat() -> None:
    rules = devices.rules(devices.STANDARD)
    assert len(set(rules)) == len(rules)
    assert DeviceRule("c", 1, 3, "rwm") in rules
    assert not [
        rule for rule in rules if rule.minor is None and rule.access != "m" and rule.major != 136
    ]


@pytest.mark.parametrize(
    ("name", "access"),
    [("../mem", "rw"), ("/mem", "r"), ("null", "x"), ("nothing", "r"), ("", "r")],
)
def test_bad_devnodes(name: str, access: str, tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        devices.from_devnodes(name, access, dev=tmp_path)


def test_known_devices_need_no_file(tmp_path: Path) -> None:
    node = devices.from_devnodes("net/tun", "rw", dev=tmp_path)
    assert node.rule == DeviceRule("c", 10, 200, "rwm")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadValue, match="not a device"):
        devices.from_devnodes("file", "rw", dev=tmp_path)
