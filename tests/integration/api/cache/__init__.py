"""Tests of the response cache on real servers."""
