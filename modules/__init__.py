"""The networks and losses of SCHN."""

from .alexnet import AlexNetHash
from .all_in_one import CycleNet
from .backbones import BACKBONES, image_network
from .discriminator import ReconstructionDiscriminator
from .losses import cycle_loss, cycle_loss_parts, discriminator_loss, generator_loss
from .mlp import MLP

__all__ = [
    "BACKBONES",
    "MLP",
    "AlexNetHash",
    "CycleNet",
    "ReconstructionDiscriminator",
    "cycle_loss",
    "cycle_loss_parts",
    "discriminator_loss",
    "generator_loss",
    "image_network",
]
