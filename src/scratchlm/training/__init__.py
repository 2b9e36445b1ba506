"""The one training loop, for every architecture."""
