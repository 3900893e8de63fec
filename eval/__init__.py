"""Evaluation: metrics, parallel scoring and reports. Reads the files that the other rooms write."""
