"""Requests to CRIU as values (pure): which options a dump and a restore of a container need.

Why each is there is told in docs/design/checkpoint.md; what they mean in criu(8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyvz.container import criu_pb2
from pyvz.container.criu import Criu
from pyvz.container.frame import External, Frame
from pyvz.container.swrk import IMAGES
from pyvz.linux import syscall

_GHOST_LIMIT = 1 << 30  # bytes of a deleted file that is still open; it goes into the images
_FREEZE_TIMEOUT = 60  # seconds until CRIU gives up halting the processes; its own default is 10
_LOG_LEVEL = 4
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"


class DumpRequest(NamedTuple):
    """What is asked of a dump.

    leave_running: the container goes on afterwards.  track_mem: pages that change from now on are
    known to the next round.  parent: the images of the round before, relative to these.
    lazy_pages: pages stay here and are served.  page_fd: the number inside CRIU of a connected
    socket, to a page server or (lazy_pages) from a reader.  status_fd: likewise; it is sent a byte
    when lazy images are complete.
    """

    frame: Frame
    leave_running: bool = False
    track_mem: bool = False
    parent: str = ""
    lazy_pages: bool = False
    page_fd: int | None = None
    status_fd: int | None = None


def dump(request: DumpRequest, criu: Criu, pid: int) -> criu_pb2.criu_req:
    """Return the request for a final dump."""
    options = _dump_options(request, criu, pid)
    options.leave_running = request.leave_running
    options.lazy_pages = request.lazy_pages
    if request.status_fd is not None:
        options.status_fd = request.status_fd
    return criu_pb2.criu_req(type=criu_pb2.DUMP, opts=options)


def pre_dump(request: DumpRequest, criu: Criu, pid: int) -> criu_pb2.criu_req:
    """Return the request for a round of pre-copy."""
    options = _dump_options(request, criu, pid)
    options.track_mem = True
    return criu_pb2.criu_req(type=criu_pb2.SINGLE_PRE_DUMP, opts=options)


def restore(
    frame: Frame, criu: Criu, places: Mapping[str, str], *, root: str, cgroup: str, lazy: bool
) -> criu_pb2.criu_req:
    """Return the request for a restore.

    places: where each external mount is found in CRIU's mount namespace, by name.
    """
    options = _common(criu, cgroup, RESTORE_LOG)
    options.root = root
    options.rst_sibling = True
    options.lazy_pages = lazy
    options.external.extend(f"mnt[{each.name}]:{places[each.name]}" for each in frame.externals)
    return criu_pb2.criu_req(type=criu_pb2.RESTORE, opts=options)


def features() -> criu_pb2.criu_req:
    """Return the question what this CRIU can do here."""
    wanted = criu_pb2.criu_features(mem_track=True, lazy_pages=True)
    return criu_pb2.criu_req(type=criu_pb2.FEATURE_CHECK, features=wanted)


def _dump_options(request: DumpRequest, criu: Criu, pid: int) -> criu_pb2.criu_opts:
    frame = request.frame
    options = _common(criu, frame.cgroup, DUMP_LOG)
    options.root = "/"
    options.pid = pid
    options.force_irmap = True
    options.timeout = _FREEZE_TIMEOUT
    options.track_mem = request.track_mem
    if request.parent:
        options.parent_img = request.parent
    if request.page_fd is not None and not request.lazy_pages:  # then it is taken for a port
        options.ps.fd = request.page_fd
    options.external.extend(_dumped(frame.externals))
    return options


def _dumped(externals: Sequence[External]) -> list[str]:
    return [f"mnt[{each.target}]:{each.name}" for each in externals]


def _common(criu: Criu, cgroup: str, log: str) -> criu_pb2.criu_opts:
    options = criu_pb2.criu_opts(
        images_dir_fd=IMAGES,
        log_level=_LOG_LEVEL,
        log_file=log,
        notify_scripts=True,
        tcp_established=True,
        file_locks=True,
        ext_unix_sk=True,
        link_remap=True,
        ghost_limit=_GHOST_LIMIT,
        orphan_pts_master=True,
        empty_ns=syscall.CLONE_NEWNET,
        manage_cgroups_mode=criu_pb2.SOFT,
        network_lock=criu_pb2.SKIP if criu.has_lock_skip else criu_pb2.IPTABLES,
    )
    options.cg_root.add(path=cgroup)
    return options
