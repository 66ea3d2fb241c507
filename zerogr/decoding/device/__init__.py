"""Constrained decoding for devices that host code would hold up: what `zerogr.decoding` answers, as array programs."""
