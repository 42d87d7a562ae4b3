#!/bin/sh
# Make the venv in which the aibrix adapter's workers run: install.sh PYTHON TARGET.
exec sh "$(dirname "$0")/../wheel_env.sh" "$1" "$2" aibrix "${PEER_WHEEL:-aibrix-kvcache==0.8.0}"
