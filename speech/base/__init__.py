"""What everything else stands on: shapes of data files. Imports nothing of the other rooms."""
