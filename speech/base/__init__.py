"""The basis of all other rooms: commands, files, processes, records of runs. It imports none."""
