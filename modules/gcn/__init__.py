"""Graph convolution on the similarity graph of a batch."""

from modules.gcn.layers import GraphConvolution
from modules.gcn.models import GraphHash

__all__ = ["GraphConvolution", "GraphHash"]
