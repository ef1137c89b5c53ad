"""nnU-Net v2's inference: preparation, sliding window, ensemble and cascade, as nnU-Net itself computes them.

Its own sliding window is followed rather than this package's tiling, because the tiles of a network with instance
normalisation are part of its result.
"""
