"""What is computed: the units of a network, and how any ``nn.Module`` is traced into them. Only tracing needs torch."""
