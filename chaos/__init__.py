"""Fault injection: kill, freeze, cut off and wipe real processes under load, then verify every job over HTTP."""
