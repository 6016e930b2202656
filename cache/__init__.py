"""The contract between the stages: views, targets, their storage. numpy and zarr only."""
