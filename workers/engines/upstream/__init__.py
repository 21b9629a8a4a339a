"""Shared by the engines that relay jobs to another server."""
