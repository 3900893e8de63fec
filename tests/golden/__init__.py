"""Published numbers and scores by outside tools."""
