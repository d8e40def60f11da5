"""Metrics: plain functions on predictions."""
