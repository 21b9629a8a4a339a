"""Tests of running processes, from outside."""
