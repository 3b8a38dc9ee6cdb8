"""The networks and losses of SCHN."""

from modules.alexnet import AlexNetHash
from modules.all_in_one import CycleNet
from modules.backbones import image_network
from modules.discriminator import ReconstructionDiscriminator
from modules.losses import cycle_loss_parts, discriminator_loss, generator_loss
from modules.mlp import MLP

__all__ = [
    "MLP",
    "AlexNetHash",
    "CycleNet",
    "ReconstructionDiscriminator",
    "cycle_loss_parts",
    "discriminator_loss",
    "generator_loss",
    "image_network",
]
