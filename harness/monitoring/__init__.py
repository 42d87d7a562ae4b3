"""Roots and runs observed from outside: `observe` and `watch`."""
