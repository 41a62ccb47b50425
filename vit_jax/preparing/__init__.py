"""The commands of `vit data`: data sets are checked, and written in a form for training."""
