"""Which plan is best: the devices and links that it is for. Pure: no MPI, no torch."""
