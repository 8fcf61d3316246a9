"""Scores of a trained run, or of any folder or shard set of images, against a reference."""
