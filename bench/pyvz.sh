#!/bin/bash
# A driver for peers.sh, the bench that all managers share: pyvz as one more peer.
#
#   peers.sh -d bench/pyvz.sh -p "pyvz runc incus-dir" all
#
# It is read by that program, which sets W, IMG_TAR and the array PEERS and calls these functions.
# The node is one of its own below the scratch folder.
# shellcheck disable=SC2034,SC2154
PEERS+=(pyvz)
PYVZ=$W/pyvz

pyvz_setup() {
	local cache=$PYVZ/vz/template/cache
	command -v prlctl >/dev/null || return
	mkdir -p "$cache"
	zstd -q -f -3 "$IMG_TAR" -o "$cache/debian-12-x86_64.plain.tar.zst" || return
	tar -C "$W/tiny/rootfs" --numeric-owner -c . | zstd -q -f -o "$cache/tiny-1-x86_64.plain.tar.zst" || return
	# For our own calls here; the timed commands get the environment by env(1).
	cat >"$W/bin/pyvz" <<-E
		#!/bin/sh
		export PYVZ_ROOT=$PYVZ
		exec "\$@"
	E
	chmod 755 "$W/bin/pyvz"
	pyvz prlctl list >/dev/null
}

pyvz_clean() {
	[ -x "$W/bin/pyvz" ] || return 0
	local name point
	for name in $(pyvz prlctl list -a -H -o name); do
		pyvz prlctl stop "$name" --kill
		pyvz prlctl delete "$name"
	done
	pyvz prlsrvctl shutdown --force
	for name in $(pyvz_daemon); do kill -KILL "$name"; done
	awk -v d="$PYVZ/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r |
		while read -r point; do umount -l "$point"; done
}

pyvz_cmd() {
	local operation=$1 name=${2:-} more=${3:-} p="env PYVZ_ROOT=$PYVZ prlctl"
	case $operation in
	create) echo "$p create $name --vmtype ct --ostemplate debian-12-x86_64" ;;
	create_tiny) echo "$p create $name --vmtype ct --ostemplate tiny-1-x86_64" ;;
	start) echo "$p start $name" ;;
	stop) echo "$p stop $name" ;;
	kill) echo "$p stop $name --kill" ;;
	delete) echo "$p delete $name" ;;
	exec) echo "$p exec $name --without-shell /bin/true" ;;
	list) echo "$p list -a" ;;
	clone) echo "$p clone $name --name $more" ;;
	mem) echo "$p set $name --memsize ${more}M" ;;
	cpu) echo "$p set $name --cpulimit $more" ;;
	esac
}

# Init is the child of the keeper that is in the container's cgroup.
pyvz_pid() {
	local uuid keeper pid
	uuid=$(pyvz prlctl list -H -o uuid,name | awk -v n="$1" '$2 == n {gsub(/[{}]/, "", $1); print $1}')
	[ -n "$uuid" ] || return 0
	for keeper in $(pgrep -f "pyvz.container.keeper.*$PYVZ/"); do
		for pid in $(<"/proc/$keeper/task/$keeper/children"); do
			grep -q "$uuid" "/proc/$pid/cgroup" 2>/dev/null && echo "$pid" && return
		done
	done
}

pyvz_daemon() { pgrep -f "pyvz\.(daemon\.main|container\.keeper).*$PYVZ( |/|\$)"; }
