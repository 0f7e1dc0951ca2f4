#!/usr/bin/env bash
# Install the parts of an image; Dockerfile and apptainer.def both use it.
#
#   container/install.sh system [PACKAGE...]   install packages of the distribution from the day of $SNAPSHOT
#   container/install.sh packages              install the locked Python packages in /opt/kit, torch for $ACCELERATOR
#   container/install.sh kit                   install the kit from /kit in /opt/kit
#   container/install.sh mounts                make the folders for results, models and data
#   container/install.sh sources ID CODENAME   print where packages of a distribution come from
#   container/install.sh fresh TIME FOLDER     fail if an index of packages in a folder of apt is older than TIME
#   container/install.sh clean                 remove logs, caches and other files that differ between builds
set -euo pipefail
umask 022 # the user of the image must be able to read all files
here=$(cd "$(dirname "$0")/.." && pwd)

# What the kit needs besides Python packages. The base image has the libraries of the GPU driver, torch the rest.
SYSTEM=(ca-certificates make openssh-client python3) # openssh-client signs archives and checks signatures

# The day of the package archive; if it is set to nothing, the package sources of the base image are used.
: "${SNAPSHOT=20261101T000000Z}"

sources() { # ID CODENAME, as in /etc/os-release
	local url security component=main keys=/usr/share/keyrings/$1-archive-keyring.gpg
	case $1 in
	ubuntu)
		url=http://snapshot.ubuntu.com/ubuntu/$SNAPSHOT security=$url
		component='main universe' ;; # universe has python3-venv
	debian)
		url=http://snapshot.debian.org/archive/debian/$SNAPSHOT
		security=http://snapshot.debian.org/archive/debian-security/$SNAPSHOT ;;
	*)
		echo "container/install.sh: expected ubuntu or debian, not $1; for another distribution, build with SNAPSHOT= (empty)" >&2
		exit 2 ;;
	esac
	local options="[check-valid-until=no signed-by=$keys]"
	echo "deb $options $url $2 $component"
	echo "deb $options $url $2-updates $component"
	echo "deb $options $security $2-security $component"
}

# The archives of a past day have expired, so apt cannot check their age; whoever controls the network could offer
# an older one, with a valid signature.
fresh() { # TIME FOLDER
	local file suite until day
	day=$(date -ud "${1:0:8} ${1:9:2}:${1:11:2}" +%s)
	for file in "$2"/*Release; do
		suite=$(sed -n '/^Suite: /{s///p;q}' "$file")
		until=$(sed -n '/^Valid-Until: /{s///p;q}' "$file") # of Debian's updates
		case $suite in *-updates | *-security) : "${until:=$(sed -n '/^Date: /{s///p;q}' "$file") + 30 days}" ;; esac
		if [ -n "$until" ] && [ "$(date -ud "$until" +%s)" -lt "$day" ]; then
			echo "${file##*/}: its index had expired by $1 ($until), so packages may lack security updates; build again" \
				"on another network, or with another SNAPSHOT" >&2
			exit 1
		fi
	done
}

install_system() {
	if [ -n "$SNAPSHOT" ]; then
		. /etc/os-release
		local found
		found=$(sources "$ID" "$VERSION_CODENAME")
		rm -rf /etc/apt/sources.list /etc/apt/sources.list.d
		echo "$found" > /etc/apt/sources.list
	fi
	# apt must stay root: a build without subordinate ids has no other user.
	apt-get -qq -o APT::Sandbox::User=root update
	[ -z "$SNAPSHOT" ] || fresh "$SNAPSHOT" /var/lib/apt/lists
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o APT::Sandbox::User=root install -y --no-install-recommends \
		"${SYSTEM[@]}" "$@" >/dev/null
	clean
}

clean() {
	apt-get clean
	rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/log/apt \
		/var/log/dpkg.log /var/log/alternatives.log
}

install_packages() {
	export PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
	"$here/lockfiles/install.sh" /opt/kit python3 "${ACCELERATOR:-cuda}" runtime pocket
	compile /opt/kit
}

install_kit() {
	export PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
	"$here/lockfiles/pip.sh" /opt/kit/bin/python install -qq --no-deps --no-build-isolation --editable "$here"
	compile /opt/kit "$here/src"
	printf '{"base": "%s", "commit": "%s"}\n' "${BASE_IMAGE:-}" "${COMMIT:-}" > "$here/image.json" # for records
	mkdir -p "$here/runs"
	chmod -R a+rX "$here" # the clone may have been made with a strict umask
	make_mounts
}

make_mounts() { # any user can write here, even if nothing is mounted
	mkdir -p "$here/runs" /cache/huggingface /cache/qlora-repeat
	chmod 1777 "$here/runs" /cache /cache/*
}

compile() { # bytecode without the time of its source, so that each build gives the same files
	PYTHONHASHSEED=0 /opt/kit/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$@" || true
}

what=${1:-}
shift || true
case $what in
system | packages | kit) "install_$what" "$@" ;;
mounts) make_mounts ;;
sources | fresh | clean) "$what" "$@" ;;
*)
	sed -n 's/^#   //p' "$0" >&2
	exit 2 ;;
esac
