"""Schedulers, averages and gradient sync on torch; nothing here knows Ray."""
