"""MONAI bundles on Volumes: built from reviewed parts, run as MONAI would, brought back to the scan's voxels."""
