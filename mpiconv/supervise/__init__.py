"""Keeping a run going from outside: starting mpirun, and starting it again where pictures are left. Needs no MPI."""
