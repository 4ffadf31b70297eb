"""Encode vectors for a device, and measure its answers to probe vectors."""
