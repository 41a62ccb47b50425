"""Launchers: how `vit train` is started on more than one process."""
