"""The systems under load, each started as processes on this machine."""
