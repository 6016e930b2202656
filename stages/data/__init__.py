"""From bytes on disk to pixels: shards, order, decoding, rendering."""
