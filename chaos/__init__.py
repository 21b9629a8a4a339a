"""Faults on purpose: real processes under load, killed, frozen, cut off and wiped, and checked from the outside."""
