"""Tests of pieces on real servers."""
