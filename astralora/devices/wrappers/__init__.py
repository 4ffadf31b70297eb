"""Wrap devices to correct, tile, record, replay, price or disturb them."""
