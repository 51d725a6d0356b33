"""Stands in for SAPIEN 2; see README.md. Nothing imports it."""
