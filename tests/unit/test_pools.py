"""Storage pools as files: read, written, the default, files that nobody can understand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import AlreadyExists, BadValue, ConfigError, NotFound
from pyvz.store.paths import Paths
from pyvz.store.pools import Pool, Pools, check_name, format_options, parse_options


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    return Pools(Paths(tmp_path))


def pool(root: Path, name: str = "fast", **fields: object) -> Pool:
    made = Pool(name, "btrfs", root / "data", {"floor": "1G"})
    return made._replace(**fields)  # type: ignore[arg-type]


def test_without_files_there_is_the_default(pools: Pools, tmp_path: Path) -> None:
    (only,) = pools.all()
    assert only == Pool("default", "ploop", tmp_path / "vz/private", {}, True, True)
    assert pools.default() == only
    assert pools.find(tmp_path / "vz/private/some") == only
    assert pools.find(tmp_path / "elsewhere/some") is None


def test_added_found_changed_removed(pools: Pools, tmp_path: Path) -> None:
    made = pool(tmp_path)
    pools.add(made)
    with pytest.raises(AlreadyExists):
        pools.add(made)
    assert pools.get("fast") == made
    assert [each.name for each in pools.all()] == ["default", "fast"]
    pools.save(made._replace(options={"floor": "2G"}))
    assert pools.get("fast").options == {"floor": "2G"}
    text = (tmp_path / "etc/vz/pools/fast.conf").read_text()
    assert 'DIRECTORY="/data"' in text
    pools.remove("fast")
    pools.remove("fast")
    with pytest.raises(NotFound, match="no storage pool 'fast'"):
        pools.get("fast")


def test_there_is_one_default(pools: Pools, tmp_path: Path) -> None:
    pools.add(pool(tmp_path, "one", default=True))
    pools.add(pool(tmp_path, "two", default=True))
    assert pools.default().name == "two"
    assert not pools.get("one").default
    pools.save(pools.get("one")._replace(default=True))
    assert [each.name for each in pools.all() if each.default] == ["one"]
    pools.remove("one")
    assert pools.default().name == "default"


def test_of_two_claims_the_last_counts(pools: Pools, tmp_path: Path) -> None:
    for name in ("b", "a"):
        pools.add(pool(tmp_path, name))
        conf = tmp_path / f"etc/vz/pools/{name}.conf"
        conf.write_text(conf.read_text().replace('DEFAULT="no"', 'DEFAULT="yes"'))
    assert pools.default().name == "a"


def test_keys_of_others_stay(pools: Pools, tmp_path: Path) -> None:
    pools.add(pool(tmp_path))
    conf = tmp_path / "etc/vz/pools/fast.conf"
    conf.write_text("# mine\nX_OURS='1'\n" + conf.read_text())
    pools.save(pools.get("fast")._replace(driver="overlay"))
    assert conf.read_text().startswith("# mine\nX_OURS='1'\n")
    assert pools.get("fast").driver == "overlay"


@pytest.mark.parametrize(
    "text",
    ["", 'DRIVER="btrfs"', 'DRIVER="x"\nDIRECTORY="../.."', 'DRIVER="x"\nDIRECTORY="/a/../b"',
     'DRIVER="x"\nDIRECTORY="/a"\nOPTIONS="floor"'],
)  # fmt: skip
def test_a_bad_file_is_said_and_the_rest_works(pools: Pools, tmp_path: Path, text: str) -> None:
    pools.add(pool(tmp_path))
    (tmp_path / "etc/vz/pools/bad.conf").write_text(text)
    assert [each.name for each in pools.all()] == ["default", "fast"]
    ((name, problem),) = pools.problems()
    assert name == "bad"
    assert "bad.conf" in problem
    with pytest.raises(ConfigError):
        pools.get("bad")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 33, "a b", ".hidden", "a\n"])
def test_names(name: str) -> None:
    with pytest.raises(BadValue):
        check_name(name)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9./ =_-]{0,12}", fullmatch=True).map(str.strip),
    )
)
def test_options_round_trip(options: dict[str, str]) -> None:
    assert parse_options(format_options(options)) == options
