"""Graph convolution over the similarity graph of a batch."""

from .layers import GraphConvolution
from .models import GraphHash

__all__ = ["GraphConvolution", "GraphHash"]
