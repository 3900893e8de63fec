"""The basis of all other rooms: commands, files, processes, records of runs. Imports no other."""
