"""Erases the data of an end user of a project."""
