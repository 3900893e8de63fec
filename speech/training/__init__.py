"""Training: settings, data sets, the loop, several devices. Imports base to data."""
