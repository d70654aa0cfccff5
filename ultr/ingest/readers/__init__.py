"""Readers of raw click logs and graded lists, one module per format."""
