"""Launchers start a command of `vit` on several processes, here or on a cluster: a file each, over
one description of a job. Modules import each other by relative names, because the folder stands
beside the package and linters know it as `launch`."""
