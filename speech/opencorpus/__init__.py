"""Builds a TIMIT-shaped corpus of several hours of free speech and noise out of Debian packages."""
