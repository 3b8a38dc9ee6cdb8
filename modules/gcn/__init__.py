"""Graph convolution on the similarity graph of a batch."""
