#!/usr/bin/env bash
# Install the packages that compare_peers.py measures, each in an environment of its own, at the
# versions that data/results/peers.json was made with. About 1.5 GB each, torch for CPUs.
#
#     scripts/install_peers.sh .peers                 (all of them)
#     scripts/install_peers.sh .peers mace chgnet
set -euo pipefail

torch="torch==2.13.0"
index=https://download.pytorch.org/whl/cpu

if [ $# -eq 0 ]; then
  echo "usage: $0 FOLDER [mace sevenn chgnet nequip]" >&2
  exit 2
fi
folder=$1
shift
[ $# -gt 0 ] || set -- mace sevenn chgnet nequip

for name in "$@"; do
  case $name in
    mace) wanted="mace-torch==0.3.16" ;;
    sevenn) wanted="sevenn==0.13.0" ;;
    chgnet) wanted="chgnet==0.4.2" ;;
    nequip) wanted="nequip==0.19.1 nequip-allegro==0.8.3" ;;
    *)
      echo "error: there is no package '$name'; there are mace, sevenn, chgnet and nequip" >&2
      exit 2
      ;;
  esac
  echo "$folder/$name: $torch, then $wanted"
  test -x "$folder/$name/bin/python" || "${PYTHON:-python3}" -m venv "$folder/$name"
  pip="$folder/$name/bin/pip install --quiet --disable-pip-version-check"
  $pip --extra-index-url "$index" "$torch" numpy
  $pip "$torch" $wanted # named again, for the package must not change it
done
