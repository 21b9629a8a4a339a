"""Judges: answers that models score by rubrics, the labels of people they are compared with, and comparisons."""
