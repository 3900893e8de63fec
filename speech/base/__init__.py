"""What every room stands on: commands, files, processes, records of runs. Imports no other room."""
