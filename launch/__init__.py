"""Launchers start `vit train` on several processes. There are none yet: one process, with as many
devices as it sees, is started as `vit train`."""
