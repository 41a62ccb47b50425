"""Devices: the mesh, the shardings of every array, and starting several processes."""
