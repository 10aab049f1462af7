#!/bin/sh
# Renews the lock of the image: the newest packages that answer to debian.in, full.in and slim.in, with their digests.
#
#   rootfs/lock.sh [FOLDER]           FOLDER/lock from FOLDER/*.in, by default those beside this script
#   PYTHON=/opt/bin/python3.11 rootfs/lock.sh
#                                     a Python of the suite's version, with pip 23 or newer
#   NSBOX_DEBIAN_MIRROR=http://...    a mirror that has debian/ and debian-security/
#
# Needs a Debian with the suite's keys. Nothing of the packages runs, and nothing is installed.
#
#   lock/debian.txt   name, version, sha256 and path of each Debian package, in the order in which they are unpacked
#   lock/NAME.txt     one wheel for each requirement, in the format of pip's --require-hashes; its file is in the comment
#   lock/epoch        the lock's own time, which every file of the image bears
set -eu

suite=bookworm
python_version=3.11
mirror=${NSBOX_DEBIAN_MIRROR:-http://deb.debian.org}
python=${PYTHON:-python$python_version}
folder=$(cd "${1:-$(dirname "$0")}" && pwd)

die() {
    echo "rootfs/lock.sh: $*" >&2
    exit 1
}

command -v apt-get >/dev/null || die "apt-get is missing: renew the lock on Debian"
"$python" -c 'import sys, pip; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$python_version" ||
    die "$python is not Python $python_version with pip: name one, as in PYTHON=/opt/bin/python$python_version rootfs/lock.sh"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
new=$scratch/lock
mkdir "$new"

# An apt of its own, on a system where nothing is installed.
mkdir -p "$scratch/etc/sources.list.d" "$scratch/etc/preferences.d" "$scratch/lists/partial" "$scratch/cache/archives/partial"
: >"$scratch/status"
cat >"$scratch/etc/sources.list" <<SOURCES
deb $mirror/debian $suite main
deb $mirror/debian $suite-updates main
deb $mirror/debian-security $suite-security main
SOURCES
cat >"$scratch/apt.conf" <<CONF
Dir::Etc "$scratch/etc";
Dir::State "$scratch";
Dir::State::Lists "$scratch/lists";
Dir::State::status "$scratch/status";
Dir::Cache "$scratch/cache";
Dir::Etc::trustedparts "/usr/share/keyrings";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
CONF
export APT_CONFIG="$scratch/apt.conf"
apt-get -qq update
wanted=$(sed -n 's/^\([a-z0-9][^ #]*\).*/\1/p' "$folder/debian.in")
left_out=$(sed -n 's/^-\([a-z0-9][^ #]*\).*/\1/p' "$folder/debian.in")
# shellcheck disable=SC2086 # one word for each package
apt-get -qq install --no-install-recommends --print-uris $wanted >"$scratch/uris"
{
    echo "# Written by rootfs/lock.sh: name, version, sha256, path on the mirror."
    # 'URI' name_version_arch.deb size SHA256:digest; the name has the epoch, as %3a, and the URI has not.
    sed -n "s|^'$mirror/\([^']*\)' \([^_]*\)_\([^_]*\)_[^ ]* [0-9]* SHA256:\([0-9a-f]*\)$|\2 \3 \4 \1|p" "$scratch/uris" |
        sed 's/%3a/:/' | grep -vE "^($(echo $left_out | tr ' ' '|' | sed 's/[+.]/\\&/g')) " | LC_ALL=C sort
} >"$new/debian.txt"
[ "$(wc -l <"$new/debian.txt")" -gt 1 ] || die "apt-get named no packages: $(cat "$scratch/uris")"

# full first, and its versions hold for the others.
: >"$scratch/constraints"
for profile in full $(cd "$folder" && ls ./*.in | sed 's|^\./||; s|\.in$||; /^full$/d; /^debian$/d'); do
    [ -f "$folder/$profile.in" ] || continue
    "$python" -m pip install --quiet --dry-run --ignore-installed --only-binary :all: --no-cache-dir \
        --disable-pip-version-check -c "$scratch/constraints" --report "$scratch/report" -r "$folder/$profile.in"
    "$python" - "$scratch/report" "$profile.in" >"$new/$profile.txt" <<'PYTHON'
import json, re, sys, urllib.parse

report, source = sys.argv[1:]
print(f"# Written by rootfs/lock.sh from {source}.")
lines = []
for item in json.load(open(report))["install"]:
    name = re.sub("[-_.]+", "-", item["metadata"]["name"]).lower()
    file = urllib.parse.unquote(item["download_info"]["url"].rsplit("/", 1)[1])
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{digest}  # {file}")
print("\n".join(sorted(lines)))
PYTHON
    [ "$profile" != full ] || sed -n 's/ --hash.*//p' "$new/full.txt" >"$scratch/constraints"
done
date +%s >"$new/epoch"

rm -rf "$folder/lock"
mv "$new" "$folder/lock"
