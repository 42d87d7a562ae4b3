#!/bin/sh
# Make the venv in which the sglang adapter's workers run: install.sh PYTHON TARGET.
exec sh "$(dirname "$0")/../wheel_env.sh" "$1" "$2" sglang "${PEER_WHEEL:-sglang==0.5.23}"
