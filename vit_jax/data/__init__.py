"""Images from where they are to uint8 batches on the device, in an order that is a function of
(seed, examples seen)."""
