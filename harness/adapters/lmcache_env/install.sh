#!/bin/sh
# Make the venv in which the lmcache adapter's workers run: install.sh PYTHON TARGET.
exec sh "$(dirname "$0")/../wheel_env.sh" "$1" "$2" lmcache "${PEER_WHEEL:-lmcache==0.5.6}"
