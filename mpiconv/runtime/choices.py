"""What the options of a run can be: one list for the command line and for the settings. Standard library only."""

COMPUTES = ("auto", "eager", "onednn", "fused")
"""Local engines of the package; those that users register come to them (``mpiconv.runtime.compute.engines``)."""

WAITS = ("auto", "spin", "sleep")
WIRES = ("float32", "float16", "bfloat16", "int8")
OVERLAPS = ("auto", "on", "off")
SAME_HOSTS = ("auto", "messages")
GUARDS = ("auto", "on", "off")
