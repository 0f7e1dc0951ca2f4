#!/usr/bin/env bash
# What an image consists of, for Dockerfile and apptainer.def alike.
#
#   container/install.sh system [PACKAGE...]   the distribution's packages, as they were on the day of $SNAPSHOT
#   container/install.sh packages              /opt/kit: Python's, from lockfiles/, with torch for $ACCELERATOR
#   container/install.sh kit                   the kit in /kit, into /opt/kit
#   container/install.sh mounts                the folders for results, models and data
#   container/install.sh sources ID CODENAME   shows where a distribution's packages come from
#   container/install.sh clean                 removes what names the day of the build, or only serves to install
set -euo pipefail
umask 022 # whoever runs the image is not who built it
here=$(cd "$(dirname "$0")/.." && pwd)

# What the kit needs besides Python's packages: the base image brings a GPU's libraries, torch the rest.
SYSTEM=(ca-certificates make python3)

# The day of the archive; set, but empty: what the base image is set to.
: "${SNAPSHOT=20261101T000000Z}"

sources() { # ID CODENAME: as /etc/os-release has them
	local url security component=main keys=/usr/share/keyrings/$1-archive-keyring.gpg
	case $1 in
	ubuntu)
		url=http://snapshot.ubuntu.com/ubuntu/$SNAPSHOT security=$url
		component='main universe' ;; # the latter has python3-venv
	debian)
		url=http://snapshot.debian.org/archive/debian/$SNAPSHOT
		security=http://snapshot.debian.org/archive/debian-security/$SNAPSHOT ;;
	*)
		echo "container/install.sh: no snapshots of $1 are known; build with SNAPSHOT= (empty)" >&2
		exit 2 ;;
	esac
	local options="[check-valid-until=no signed-by=$keys]"
	echo "deb $options $url $2 $component"
	echo "deb $options $url $2-updates $component"
	echo "deb $options $security $2-security $component"
}

install_system() {
	if [ -n "$SNAPSHOT" ]; then
		. /etc/os-release
		local found
		found=$(sources "$ID" "$VERSION_CODENAME")
		rm -rf /etc/apt/sources.list /etc/apt/sources.list.d
		echo "$found" > /etc/apt/sources.list
	fi
	# As root throughout: a build without subordinate ids has no other user.
	apt-get -qq -o APT::Sandbox::User=root update
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
	/opt/kit/bin/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable "$here"
	compile /opt/kit "$here/src"
	printf '{"base": "%s", "commit": "%s"}\n' "${BASE_IMAGE:-}" "${COMMIT:-}" > "$here/image.json" # for records
	mkdir -p "$here/runs"
	chmod -R a+rX "$here" # of a clone with a strict umask, too
	make_mounts
}

make_mounts() { # for whoever runs it, also where nothing is mounted
	mkdir -p "$here/runs" /cache/huggingface /cache/qlora-repeat
	chmod 1777 "$here/runs" /cache /cache/*
}

compile() { # valid whatever the time of the source says: an image is read-only, and is to be the same again
	PYTHONHASHSEED=0 /opt/kit/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$@" || true
}

what=${1:-}
shift || true
case $what in
system | packages | kit) "install_$what" "$@" ;;
mounts) make_mounts ;;
sources | clean) "$what" "$@" ;;
*)
	sed -n 's/^#   //p' "$0" >&2
	exit 2 ;;
esac
