"""The networks and losses of SCHN."""

from modules.alexnet import AlexNetHash
from modules.all_in_one import CycleNet
from modules.backbones import BACKBONES, image_network
from modules.discriminator import ReconstructionDiscriminator
from modules.losses import cycle_loss, cycle_loss_parts, discriminator_loss, generator_loss
from modules.mlp import MLP

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
