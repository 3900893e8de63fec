"""Attacks on the readers, generated at test time, and the process that reads them.

A family is a function of an empty folder that yields (name, file name, bytes). Bytes may be None
if the attack has been written there already. ``python -m tests.hostile FOLDER`` reads the files
of a folder and prints one JSON object a file.
"""

from tests.hostile import hdf5_files, packed_files, sound_files

FAMILIES = {
    f"{module.__name__.rpartition('.')[2].removesuffix('_files')}: {name.replace('_', ' ')}": family
    for module in (hdf5_files, packed_files, sound_files)
    for name, family in module.FAMILIES.items()
}
