"""Tests of one piece, without servers."""
