"""The canonical field names of `io.pyvz.Environment.List`, with the type and unit of each.

The server delivers raw values under these names (numbers, lists, objects, null for "not known" or
"not set"); the command lines turn them into columns.  A caller asks for the fields it prints, and
the server computes only those, so that a plain `prlctl list` stays cheap.

The groups say what a field costs: IDENTITY comes from the registry alone, STATE from the run
state, CONFIG from one ve.conf, USAGE from the kernel (null while the environment does not run).
"""

from __future__ import annotations

IDENTITY = (
    "uuid",  # str: canonical lower-case UUID, no braces
    "envid",  # str: the legacy numeric CTID where it has one, else the UUID
    "name",  # str
    "kind",  # str: "ct" | "vm"
    "home",  # str: private area (VE_PRIVATE); a VM's directory
)

STATE = (
    "status",  # str: a word of model.status.Status
)

CONFIG = (
    "root",  # str: mount point of the root (VE_ROOT, $VEID filled in)
    "template",  # bool: VE_TYPE=template
    "ve_type",  # str | null: regular | temporary | template
    "hostname",  # str | null
    "description",  # str | null: as the user wrote it (newlines allowed)
    "owner",  # str | null: user name of the owner ("root")
    "ostemplate",  # str | null: OSTEMPLATE as stored (a leading dot is kept)
    "distribution",  # str | null: family of the guest (DISTRIBUTION, else from OSTEMPLATE)
    "origin_sample",  # str | null
    "layout",  # str | null: storage driver (ploop, simfs, ...)
    "device",  # str | null: block device of the mounted root disk
    "cpuunits",  # int | null: 8..500000
    "cpulimit",  # int | null: percent of one CPU, 0 = no limit
    "cpulimit_mhz",  # int | null: MHz (set instead of cpulimit)
    "cpus",  # int | null: null = all
    "cpumask",  # str | null: list such as "0-3,5"
    "nodemask",  # str | null
    "ioprio",  # int | null: 0..7
    "iolimit",  # int | null: bytes per second, 0 = no limit
    "iopslimit",  # int | null: requests per second, 0 = no limit
    "onboot",  # str | null: yes | no | auto
    "bootorder",  # int | null
    "autostop",  # str | null: stop | suspend
    "disabled",  # bool | null
    "ha_enable",  # bool | null: null = the default (yes)
    "ha_prio",  # int | null
    "features",  # object name -> bool: what FEATURES sets
    "devnodes",  # list of str "net/tun:rw"
    "ip_configured",  # list of str: addresses of venet and veth from the config; a mask may follow
    "nameserver",  # list of str
    "searchdomain",  # list of str
    "ifname",  # list of str: names inside, routed ones (venet0) excluded
    "host_ifname",  # list of str: names on the node, same order as ifname
    "mac",  # list of str: "00:1c:42:aa:bb:cc", same order
    "host_mac",  # list of str, same order
    "gw",  # list of str: gateways set on interfaces
    "network",  # list of str: virtual network (or "") of each interface, same order
    "netdev",  # list of str: NICs of the node moved into the container
)

USAGE = (
    "ip",  # list of str: addresses that are up inside now; the configured ones where unknown
    "uptime",  # float: seconds since init was started, 0.0 when stopped
    "laverage",  # list of 3 float | null: load averages of the container
    "diskspace",  # {"usage", "softlimit", "hardlimit"} int | null each, KiB; null = unknown
    "diskinodes",  # the same, in inodes
)

# One field per bean counter: {"held", "maxheld", "barrier", "limit", "failcnt"}, int | null each,
# or null as a whole.  held and maxheld from the cgroup where it has the figure (numproc = pids,
# physpages = memory, swappages = swap), barrier and limit from the config (UNLIMITED = LONG_MAX).
UBC = (
    "kmemsize",  # bytes
    "lockedpages",  # pages (4096 bytes)
    "privvmpages",  # pages
    "shmpages",  # pages
    "numproc",  # count
    "physpages",  # pages
    "vmguarpages",  # pages
    "oomguarpages",  # pages
    "numtcpsock",  # count
    "numflock",  # count
    "numpty",  # count
    "numsiginfo",  # count
    "tcpsndbuf",  # bytes
    "tcprcvbuf",  # bytes
    "othersockbuf",  # bytes
    "dgramrcvbuf",  # bytes
    "numothersock",  # count
    "dcachesize",  # bytes
    "numfile",  # count
    "numiptent",  # count
    "swappages",  # pages
)

FIELDS = frozenset(IDENTITY + STATE + CONFIG + USAGE + UBC)
