"""What :class:`~lightning_compress.callbacks.CompressionReport` does at the end of a run, in parts."""
