"""The ranks as a job: control messages, waits and who is awaited, signals, clocks."""
