"""Devices: the mesh, the shardings of every array; stopping on a signal."""
