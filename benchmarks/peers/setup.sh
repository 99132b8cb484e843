#!/bin/sh
# Installs the JAX peer of the throughput benchmark into benchmarks/peers/.venv, apart from pglab's own packages.
#
#   benchmarks/peers/setup.sh          for a CPU
#   benchmarks/peers/setup.sh cuda12   for an NVIDIA GPU too (any extra that jax has)
#
# PYTHON names another interpreter than python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv --clear "$here/.venv"
"$here/.venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
if [ $# -gt 0 ]; then
    "$here/.venv/bin/python" -m pip install --quiet --constraint "$here/requirements.txt" "jax[$1]"
fi
"$here/.venv/bin/python" "$here/jax_a2c.py" --rounds 1 --seconds 1 >/dev/null
echo "The JAX peer runs."
