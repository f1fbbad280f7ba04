"""The commands of :mod:`tfq_cli`, one a module: ``run(**arguments)`` returns what is printed."""
