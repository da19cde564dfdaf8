"""One file for each format that `bookserve models add` takes: recognise, convert, read the contract, make inputs.

`choose.py` finds the format of a file, `source.py` says what every converter gives. The heavy library of a format is
imported when a file of it is converted, in a child process (`export/confined.py`).
"""
