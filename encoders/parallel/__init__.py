"""Meshes, sharding rules, and how host arrays become global device arrays."""
