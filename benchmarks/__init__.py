"""Measurements on machines that few have."""
