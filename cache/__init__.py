"""What stage one writes and stage two reads: views, targets and their storage. Needs numpy and zarr alone."""
