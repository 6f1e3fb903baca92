"""How maps get from rank to rank: messages, and memory that the ranks of a host share."""
