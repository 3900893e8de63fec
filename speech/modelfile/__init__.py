"""Model files as data: the allow-list, .h5, .icse, what they say. Imports base and sound."""
