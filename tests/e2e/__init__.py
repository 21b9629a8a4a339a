"""Tests of running processes through their public interfaces."""
